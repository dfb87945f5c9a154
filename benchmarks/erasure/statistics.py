"""Means with bootstrap intervals over what was erased and over pictures, and H_o, from recorded cells."""

from collections.abc import Mapping, Sequence

import numpy as np

from mace.measure.accuracy import h_objects
from mace.measure.statistics import DRAWS, Estimate, estimate


def percent_of(found: Estimate) -> str:
    """An estimate in percent with its interval, as a table's cell."""
    return f"{100 * found.value:.1f} ({100 * found.low:.1f}-{100 * found.high:.1f})"


def values(cell: Mapping, group: str, kind: str = "right") -> np.ndarray | None:
    """[B] of one group: "right" (0 or 1), "p", "moved" or "style"; None where the cell has no such group."""
    if group not in cell["groups"]:
        return None
    found = cell["groups"][group][kind]
    return np.array([float(x) for x in found])


def resampled(clusters: Sequence[np.ndarray], seed: int = 0) -> np.ndarray:
    """[DRAWS] means of means: clusters drawn with replacement, and in each of them its values.

    One cluster is resampled over its values alone.
    """
    generator = np.random.default_rng(seed)
    sizes = np.array([len(cluster) for cluster in clusters])
    padded = np.zeros((len(clusters), sizes.max()))
    for row, cluster in zip(padded, clusters, strict=True):
        row[: len(cluster)] = cluster
    taken = generator.integers(len(clusters), size=(DRAWS, len(clusters)))
    counted = np.arange(sizes.max()) < sizes[taken][..., None]
    places = (generator.random(counted.shape) * sizes[taken][..., None]).astype(int)
    drawn = padded[taken[..., None], places]
    return ((drawn * counted).sum(axis=2) / sizes[taken]).mean(axis=1)


def mean_of(clusters: Sequence[np.ndarray]) -> Estimate:
    """The mean of the clusters' means, and its interval (see `resampled`)."""
    return estimate(float(np.mean([cluster.mean() for cluster in clusters])), resampled(clusters))


def by_name(cell: Mapping, group: str, kind: str = "right") -> list[np.ndarray]:
    """The values of one group, a cluster for each name asked for."""
    names = np.array(cell["groups"][group]["names"])
    found = values(cell, group, kind)
    return [found[names == name] for name in dict.fromkeys(names.tolist())]


def harmonic_of_objects(cells: Sequence[Mapping]) -> Estimate:
    """H_o of Table 1: of 1 - Acc_e, Acc_s and 1 - Acc_g for each erasure, and their mean as the paper takes it.

    The interval is over the erasures and over the pictures of each. Erasures without synonyms do not count.
    """
    counted = [cell for cell in cells if "synonyms" in cell["groups"]]
    generator = np.random.default_rng(0)
    drawn = []
    for cell in counted:
        found = (values(cell, group) for group in ("erased", "classes", "synonyms"))
        shares = (right[generator.integers(len(right), size=(DRAWS, len(right)))].mean(axis=1) for right in found)
        drawn.append(h_objects(*shares))
    taken = generator.integers(len(counted), size=(DRAWS, len(counted)))
    samples = np.take_along_axis(np.stack(drawn).T, taken, axis=1).mean(axis=1)
    return estimate(float(np.mean([h_o(cell) for cell in counted])), samples)


def h_o(cell: Mapping) -> float | None:
    """H_o of one erasure, 0..1; None without synonyms."""
    found = [values(cell, group) for group in ("erased", "classes", "synonyms")]
    return None if found[2] is None else float(h_objects(*(right.mean() for right in found)))
