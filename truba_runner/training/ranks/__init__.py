"""What the ranks of one job share, whatever the framework."""
