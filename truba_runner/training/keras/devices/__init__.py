"""Devices, strategies, ranks."""
