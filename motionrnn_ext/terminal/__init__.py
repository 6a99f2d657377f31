"""What the program prints to and inherits: its terminal, streams and environment variables."""
