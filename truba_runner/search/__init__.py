"""Searches for hyperparameters with Keras Tuner's oracles: workers that share a folder, and no server between them.

A search has a directory of its own; a trial is an ordinary run below it. Whoever wants to change the search takes its
lock, reads its one state file, and replaces it whole, so a kill at any moment leaves the state before or the one after.
"""
