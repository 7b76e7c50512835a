"""The Keras backend: train(context), find(context)."""
