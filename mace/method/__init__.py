"""The method: one equation, one file."""
