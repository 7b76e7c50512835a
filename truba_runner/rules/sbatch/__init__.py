"""Rules for options of sbatch other than cores, GPUs and time, and for sbatch's variables in the shell."""
