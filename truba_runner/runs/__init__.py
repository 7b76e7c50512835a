"""Run directories: the records on disk, and the state of a run that follows from them."""
