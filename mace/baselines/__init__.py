"""Earlier methods of concept erasure, implemented anew from their papers, to compare MACE with."""
