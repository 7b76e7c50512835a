"""Hydra plugins of truba_runner: its launcher, its sweeper, and the search path of a user's own configs."""
