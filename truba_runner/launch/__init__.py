"""What becomes of one experiment."""
