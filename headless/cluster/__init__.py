"""Erasing on many machines: work in units of a fixed size, done by workers of a Ray cluster and put together here."""
