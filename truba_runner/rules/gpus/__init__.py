"""Validate an experiment against the GPUs of its partition: kernels, driver, precision, memory. Pure."""
