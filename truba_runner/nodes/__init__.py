"""Bad nodes: what a job checks on its nodes before it trains, how it leaves a bad one, and the list of bad nodes."""
