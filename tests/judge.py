"""The demo model's judge, for the tests."""

from mace.judge import Judge

__all__ = ["Judge"]
