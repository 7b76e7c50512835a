"""What this backend replaces and reads inside Keras and TensorFlow that is not public."""
