"""Not needed by the searches of these tests, and slow to import: Keras Tuner does without."""

raise ImportError(__name__)
