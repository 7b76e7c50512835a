"""The Python that a job gets, and what it contains."""
