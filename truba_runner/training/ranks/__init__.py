"""Coordinate the ranks of one job, in either framework."""
