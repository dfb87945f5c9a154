"""Which cases of a test run each time, and which when they are asked for."""

from collections.abc import Collection, Iterable

import pytest


def usually(every: Iterable, usual: Collection) -> list:
    """Cases for parametrize: those that are `usual` each time, the others with -m long."""
    return [case if case in usual else pytest.param(case, marks=pytest.mark.long) for case in every]
