"""Train networks on TRUBA: a Hydra config becomes a checked Slurm job."""

__version__ = "0.1.0"
