"""The nodes of earlier methods, to compare MACE with."""
