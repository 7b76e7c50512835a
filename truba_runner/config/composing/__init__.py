"""Command line -> composed experiment, with Hydra; mistakes in it become readable problems."""
