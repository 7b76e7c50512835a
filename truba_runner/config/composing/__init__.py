"""Command line -> composed experiment: Hydra, and what is typed wrong in words."""
