"""The demo model's judge, for the tests."""

from devtools.judge import Judge

__all__ = ["Judge"]
