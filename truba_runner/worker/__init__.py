"""The code that a Slurm job executes."""
