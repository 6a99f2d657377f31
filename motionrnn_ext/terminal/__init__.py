"""The terminal and the standard streams of the program."""
