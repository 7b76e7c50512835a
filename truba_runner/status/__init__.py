"""Where runs, sweeps and searches stand, as rows."""
