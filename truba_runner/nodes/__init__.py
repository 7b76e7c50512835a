"""Broken nodes: what is wrong with one, the list of them, and which ones a submission leaves out."""
