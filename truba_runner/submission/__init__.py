"""Submit a checked run exactly once, or start it on this machine, and report the outcome."""
