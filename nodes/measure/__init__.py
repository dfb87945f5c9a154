"""The node that measures an erasure."""
