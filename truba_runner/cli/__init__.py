"""Dispatch the command line to a command or to Hydra."""
