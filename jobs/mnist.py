"""The tutorial's digit classifier: native Keras, nothing of a cluster."""

from pathlib import Path

import keras
import numpy as np
from keras import layers


def build_model(units: int = 128) -> keras.Model:
    """Two hidden layers of `units` over the 784 grey values of an image; ten probabilities come out."""
    inputs = keras.Input(shape=(28, 28))
    x = layers.Rescaling(1.0 / 255)(inputs)
    x = layers.Flatten()(x)
    x = layers.Dense(units, activation="relu")(x)
    x = layers.Dense(units, activation="relu")(x)
    outputs = layers.Dense(10, activation="softmax")(x)
    return keras.Model(inputs, outputs, name="mnist")


def load_data(name: str, folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Images, uint8 0..255 of 28×28, and their digits. As in the tutorial the test images serve as validation too."""
    if name == "digits":
        return load_digits()
    if name != "mnist":
        raise ValueError(f"data.name is {name!r}; there are mnist and digits")
    with np.load(folder / "mnist.npz", allow_pickle=False) as file:
        train, test = (file["x_train"], file["y_train"]), (file["x_test"], file["y_test"])
        return {"train": train, "validation": test, "test": test}


def load_digits() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The 1,797 real handwritten digits that scikit-learn brings along, enlarged from 8×8 to MNIST's 28×28."""
    from sklearn.datasets import load_digits as load_small_digits
    from sklearn.model_selection import train_test_split

    small, digits = load_small_digits(return_X_y=True)
    # Each of the 8×8 values, 0..16, becomes a block of 3×3; a border of 2 is left dark.
    blocks = np.kron(small.reshape(-1, 8, 8), np.ones((1, 3, 3)))
    images = np.round(np.pad(blocks, ((0, 0), (2, 2), (2, 2))) * (255 / 16)).astype(np.uint8)
    split = train_test_split(images, digits, test_size=0.2, random_state=0, stratify=digits)
    x_train, x_test, y_train, y_test = split
    return {"train": (x_train, y_train), "validation": (x_test, y_test), "test": (x_test, y_test)}
