"""The code that a job executes: the snapshot of the user's project, and this package."""
