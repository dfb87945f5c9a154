"""The nodes that erase."""
