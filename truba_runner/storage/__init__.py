"""Files written safely: atomic writes, locks, quotas, scratch folders. Knows nothing of runs."""
