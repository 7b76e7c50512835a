"""Write a run's TensorBoard event files."""
