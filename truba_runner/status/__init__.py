"""The state of runs, sweeps and searches, as table rows, JSON, CSV and pictures."""
