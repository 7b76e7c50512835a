"""The schema, how a config is composed, and the small languages inside it. Pure but for Hydra."""
