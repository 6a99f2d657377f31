"""Measure: subjects, times, counts, rows."""
