"""What a Slurm job executes."""
