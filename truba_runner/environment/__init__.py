"""Enter the Python environment of a job, and check what it contains."""
