"""Pages and pictures of measured rows."""
