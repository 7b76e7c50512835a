"""The config schema, its composition by Hydra, and parsers of its small languages. Pure except for Hydra."""
