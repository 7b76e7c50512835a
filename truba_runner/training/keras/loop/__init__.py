"""Reporting, saving and resuming around Keras' `fit`."""
