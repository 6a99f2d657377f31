"""Measure ops, the cell and models: what is compared, how it is counted and timed, and the rows."""
