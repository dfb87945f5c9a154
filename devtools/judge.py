"""The demo model's judge: which of its 210 concepts a 64x64 picture shows, and in which style."""

from mace.judge import Judge

__all__ = ["Judge"]
