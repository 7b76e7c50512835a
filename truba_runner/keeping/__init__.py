"""Archive and clean up."""
