"""Means over concepts and seeds with bootstrap intervals.

A measure is a matrix [N, S]: one row a concept (the mean over its phrases and prompts), one column a seed, since every
prompt is drawn with the same seeds. Concepts and seeds are both samples of what one wants to know about, so both are
resampled, each with replacement and apart (the crossed, or pigeonhole, bootstrap): with one concept, or one seed, the
interval says nothing of how another would do.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

DRAWS = 2000
LEVEL = 0.95

Array = NDArray[np.float64]


class Estimate(NamedTuple):
    """A value and the ends of its interval; NaN where there is nothing to tell it from."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float | None]:
        """For JSON, which knows no NaN."""
        return {name: None if np.isnan(number) else number for name, number in self._asdict().items()}


@dataclass(frozen=True)
class Resamples:
    """How often each erased concept [R, C], kept concept [R, K] and seed [R, S] is drawn in R resamples.

    All measures of one evaluation share them, so that the interval of a difference or of a harmonic mean is that of
    values which vary together.
    """

    erased: Array
    kept: Array
    seeds: Array


def resamples(erased: int, kept: int, seeds: int, draws: int = DRAWS, seed: int = 0) -> Resamples:
    """Draw with replacement, from a generator seeded with `seed`. Raises ValueError with no concept or no seed."""
    if erased < 1 or seeds < 1:
        raise ValueError("an evaluation needs at least one erased concept and one seed")
    generator = np.random.default_rng(seed)

    def counts(size: int) -> Array:
        if size == 0:
            return np.zeros((draws, 0))
        return generator.multinomial(size, np.full(size, 1 / size), size=draws).astype(np.float64)

    return Resamples(counts(erased), counts(kept), counts(seeds))


def mean(values: Array) -> float:
    """The mean of [N, S] without rows of NaN (concepts that have no such phrases); NaN when none is left."""
    rows = values[~np.isnan(values).any(axis=1)]
    return float(rows.mean()) if rows.size else float("nan")


def resampled_means(values: Array, rows: Array, seeds: Array) -> Array:
    """`mean` in every resample, [R]. values: [N, S].  rows: [R, N] and seeds: [R, S], how often each is drawn.

    NaN in a resample that drew only rows of NaN.
    """
    there = ~np.isnan(values).any(axis=1)
    total = ((rows[:, there] @ values[there]) * seeds).sum(axis=1)
    count = rows[:, there].sum(axis=1) * seeds.sum(axis=1)
    return np.divide(total, count, out=np.full(len(rows), np.nan), where=count > 0)


def estimate(value: float, samples: Array, level: float = LEVEL) -> Estimate:
    """A value with the percentile interval of its resamples [R]; resamples of NaN are left out."""
    samples = samples[~np.isnan(samples)]
    if np.isnan(value) or not samples.size:
        return Estimate(value, float("nan"), float("nan"))
    low, high = np.quantile(samples, ((1 - level) / 2, (1 + level) / 2))
    return Estimate(value, float(low), float(high))
