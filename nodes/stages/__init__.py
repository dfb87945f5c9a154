"""The stages of an erasure, as functions that nodes call."""
