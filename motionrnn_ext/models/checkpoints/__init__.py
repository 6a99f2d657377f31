"""Checkpoints: reading those of this package and of the public programs, and writing them."""
