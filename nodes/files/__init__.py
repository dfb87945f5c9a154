"""The nodes that save and load."""
