"""Launch many runs with one command: compose them together and submit them as job arrays."""
