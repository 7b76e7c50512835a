"""Finds the state of a training by walking its objects."""
