"""The backend interface and the code that both frameworks share."""
