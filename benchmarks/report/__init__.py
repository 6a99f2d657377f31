"""Write pages and pictures of measured rows."""
