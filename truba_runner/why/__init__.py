"""`truba why`: why a run waits or why it ended, with evidence."""
