"""Measurements of what the design promises. Each module runs by itself: python -m benchmarks.<name>."""
