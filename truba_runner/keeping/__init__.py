"""Archive runs, find files that will be purged, and delete old copies."""
