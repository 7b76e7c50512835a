"""A backend without a framework."""
