"""Validation of an experiment, before submission. No disk, no network, no process."""
