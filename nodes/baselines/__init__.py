"""Nodes of published methods that need no training, for comparison with MACE."""
