"""The tutorial's digit classifier with hyperparameters in it: native Keras and Keras Tuner, nothing of a cluster."""

import keras
import keras_tuner
from keras import layers
from mnist import load_data

__all__ = ["build_model", "load_data"]


def build_model(hp: keras_tuner.HyperParameters) -> keras.Model:
    """One hidden layer over the 784 grey values of an image; ten probabilities come out."""
    inputs = keras.Input(shape=(28, 28))
    x = layers.Rescaling(1.0 / 255)(inputs)
    x = layers.Flatten()(x)
    x = layers.Dense(units=hp.Int("units", min_value=32, max_value=512, step=32), activation="relu")(x)
    outputs = layers.Dense(10, activation="softmax")(x)
    model = keras.Model(inputs, outputs)
    model.compile(
        optimizer=keras.optimizers.Adam(hp.Choice("learning_rate", values=[1e-2, 1e-3, 1e-4])),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return model
