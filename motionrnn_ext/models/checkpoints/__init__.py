"""Checkpoints of this package and of the public programs: reading and writing them."""
