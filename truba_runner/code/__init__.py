"""The code that a job executes: the user's snapshot and this package."""
