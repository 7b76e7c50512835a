"""What Keras Tuner itself keeps among the values of a trial."""

from __future__ import annotations

# What Hyperband keeps its books with, among a trial's values.
OWN = "tuner/"
