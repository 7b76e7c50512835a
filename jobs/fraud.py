"""Which card payments are fraud: two classes, one of them a few in a thousand. Native Keras, nothing of a cluster."""

import csv
from collections.abc import Iterable
from pathlib import Path

import keras
import numpy as np
from _made_transactions import make_csv
from keras import layers

VALIDATION_SHARE = TEST_SHARE = 0.2


def build_preprocessing(inputs: np.ndarray) -> keras.Layer:
    """Each column to mean 0 and variance 1, by the training rows alone."""
    normalization = layers.Normalization()
    normalization.adapt(inputs)
    return normalization


def build_model(units: int = 256) -> keras.Model:
    """Two hidden layers over the 30 columns of a payment; the probability of fraud comes out."""
    inputs = keras.Input(shape=(30,))
    x = layers.Dense(units, activation="relu")(inputs)
    x = layers.Dropout(0.3)(x)
    x = layers.Dense(units, activation="relu")(x)
    x = layers.Dropout(0.3)(x)
    outputs = layers.Dense(1, activation="sigmoid", dtype="float32")(x)
    return keras.Model(inputs, outputs, name="fraud")


def load_data(name: str, folder: Path, payments: int = 6000) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The 30 columns of each payment, float32, and whether it is fraud. `payments` is how many are made."""
    if name == "payments":
        rows, labels = read_csv(make_csv(payments, seed=0).splitlines())
    elif name == "creditcard":
        with (folder / "creditcard.csv").open(newline="") as file:
            rows, labels = read_csv(file)
    else:
        raise ValueError(f"data.name is {name!r}; there are creditcard and payments")
    return split(rows, labels)


def read_csv(lines: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
    """The columns Time, V1 to V28 and Amount, and the column Class, of a file that may quote any of its values."""
    lines = iter(lines)
    header = next(csv.reader(lines))
    if header != ["Time", *(f"V{number}" for number in range(1, 29)), "Amount", "Class"]:
        raise ValueError(f"the columns are {', '.join(header)}; expected are Time, V1 to V28, Amount and Class")
    values = np.loadtxt(lines, delimiter=",", quotechar='"', dtype=np.float32, ndmin=2)
    return values[:, :-1], values[:, -1].astype(np.int64)


def split(rows: np.ndarray, labels: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Training, validation and test rows, always the same ones, with the same share of fraud in each."""
    from sklearn.model_selection import train_test_split

    shares = {"test": TEST_SHARE, "validation": VALIDATION_SHARE / (1 - TEST_SHARE)}
    splits = {}
    for name, share in shares.items():
        rows, held_rows, labels, held_labels = train_test_split(
            rows, labels, test_size=share, random_state=0, stratify=labels
        )
        splits[name] = (held_rows, held_labels)
    return {"train": (rows, labels), "validation": splits["validation"], "test": splits["test"]}
