"""The prefix of Keras Tuner's own keys among the values of a trial."""

from __future__ import annotations

# Hyperband stores bracket, round and epochs of a trial under this prefix.
OWN = "tuner/"
