"""Benchmarks of the package, which `motionrnn bench` runs; installed as `motionrnn_ext.benchmarks`."""
