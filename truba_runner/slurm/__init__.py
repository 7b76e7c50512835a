"""The only package that runs Slurm's commands; it also writes the sbatch script."""
