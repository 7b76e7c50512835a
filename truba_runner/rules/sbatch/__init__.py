"""Rules for what `resources` asks of sbatch beyond cores, GPUs and time, and for sbatch's variables in the shell."""
