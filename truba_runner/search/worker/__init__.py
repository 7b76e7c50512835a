"""Processes of a search."""
