"""The demo model's judge, for the tests."""

from mace.measure.judge import Judge

__all__ = ["Judge"]
