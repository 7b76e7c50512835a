"""The job's DataBlock and Learner."""
