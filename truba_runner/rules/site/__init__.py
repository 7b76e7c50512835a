"""Rules of a partition: cores and GPUs, features, QOS, and where its jobs are submitted from. Pure."""
