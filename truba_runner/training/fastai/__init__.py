"""The fastai backend: train(context), find(context)."""
