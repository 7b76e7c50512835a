"""Launch one experiment: prepare it, then train it here or submit it."""
