"""Run directories: what is on disk, and the state that it tells."""
