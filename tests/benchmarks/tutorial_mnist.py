"""The tutorial's MNIST script as it is written, with today's name of `Rescaling` and the data from a file."""

import keras
import numpy as np
from keras import layers


def train(file, epochs=1, callbacks=None):
    with np.load(file) as data:
        x_train, y_train = data["x_train"], data["y_train"]

    inputs = keras.Input(shape=(28, 28))
    x = layers.Rescaling(1.0 / 255)(inputs)
    x = layers.Flatten()(x)
    x = layers.Dense(128, activation="relu")(x)
    x = layers.Dense(128, activation="relu")(x)
    outputs = layers.Dense(10, activation="softmax")(x)
    model = keras.Model(inputs, outputs)
    model.summary()

    model.compile(optimizer="adam", loss="sparse_categorical_crossentropy")

    batch_size = 64
    print("Fit on NumPy data")
    return model.fit(x_train, y_train, batch_size=batch_size, epochs=epochs, callbacks=callbacks)
