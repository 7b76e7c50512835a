"""Write a run's metrics: TensorBoard's event files and `history.csv`."""
