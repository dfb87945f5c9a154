"""Small models of other layouts than the demo model's, to measure erasing on: see README.md in this folder."""
