"""The TensorBoard viewer: on this machine, on a login node over ssh, or on pulled copies."""
