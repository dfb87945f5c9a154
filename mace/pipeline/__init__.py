"""The stages of an erasure as functions over what a host gives (see host.py)."""
