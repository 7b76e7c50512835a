"""The queue used well: which partition starts a job soonest, and how long a job should ask for."""
