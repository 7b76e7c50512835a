"""What Hydra finds of truba_runner: its launcher, its sweeper and where a user's own configs lie."""
