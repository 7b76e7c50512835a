"""What labels are, and how they are weighted."""
