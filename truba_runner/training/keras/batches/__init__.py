"""The input pipeline, seekable to any step."""
