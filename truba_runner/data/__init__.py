"""Input files: staged before submission, and image collections."""
