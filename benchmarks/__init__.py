"""Benchmarks of the package: what `motionrnn bench` measures, reports and profiles. Installed as
`motionrnn_ext.benchmarks`."""
