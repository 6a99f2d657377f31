"""The settings, data, processes and files of a training, and the training itself."""
