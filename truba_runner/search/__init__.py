"""Hyperparameter searches with Keras Tuner's oracles, by workers that share a folder and need no central server.

A search has its own directory; each trial is an ordinary run in it. To change the search a process takes its lock,
reads the one state file and replaces it atomically, so a kill leaves either the old or the new state.
"""
