"""One sbatch: prepared, submitted once, reported."""
