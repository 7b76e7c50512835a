"""The backend interface and what both frameworks share."""
