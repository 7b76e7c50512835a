"""Devices, distribution strategies, and ranks on several nodes."""
