"""Dispatch: a command, or Hydra."""
