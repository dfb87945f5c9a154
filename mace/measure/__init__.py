"""What an erasure did, in figures."""
