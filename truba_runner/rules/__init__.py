"""Validation: Experiment -> Problems. No disk, no network, no process."""
