"""What is kept by content, in memory and on disk."""
