"""What "auto" stands for, by model."""
