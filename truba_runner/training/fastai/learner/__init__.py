"""Make the DataBlock, the loaders and the Learner of a fastai job."""
