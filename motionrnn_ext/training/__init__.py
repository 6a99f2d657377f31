"""The training of a model: its settings, its data, its processes, and the folder of a run."""
