"""How far the pictures of kept concepts have moved, in a judge's features."""

import torch
from torch import Tensor


def paired_distance(base: Tensor, erased: Tensor) -> float:
    """Mean squared distance of features [n, F] of picture pairs, in units of the base pictures' own variance.

        mean_i |e_i - b_i|^2 / (2 mean_i |b_i - mean(b)|^2)

    0: the pictures are the same. 1: an erased picture is as far from its base picture as two base pictures are from
    each other on average. This is the distance to read here: both models draw the same prompts from the same noise, so
    every pair is one observation and a few dozen do, whereas a Frechet distance compares two clouds, forgets the pairs,
    and with fewer pictures than features measures mostly its own bias. NaN for fewer than two pairs.
    """
    base, erased = (part.cpu().double() for part in (base, erased))
    if len(base) < 2:
        return float("nan")
    spread = 2 * (base - base.mean(dim=0)).square().sum(dim=1).mean()
    moved = (erased - base).square().sum(dim=1).mean()
    # Features that are the same for every base picture have no scale to measure by.
    return float(moved / spread) if spread > 0 else float("nan")


def shrinkage(features: Tensor) -> float:
    """The weight in 0..1 of the identity in Ledoit and Wolf's covariance of features [n, F].

    O. Ledoit and M. Wolf, "A well-conditioned estimator for large-dimensional covariance matrices", 2004:
    min(b^2, d^2) / d^2, with S the covariance (over n), m = tr(S) / F, d^2 = |S - m I|^2 and
    b^2 = sum_k |x_k x_k^T - S|^2 / n^2, x_k the centred rows.
    """
    centred = features - features.mean(dim=0)
    count, width = centred.shape
    covariance = centred.T @ centred / count
    spread = covariance.square().sum() - covariance.trace().square() / width
    # |x x^T - S|^2 summed over rows is sum |x|^4 - n |S|^2.
    noise = (centred.square().sum(dim=1).square().sum() - count * covariance.square().sum()) / count**2
    return float((noise / spread).clamp(0, 1)) if spread > 0 else 1.0


def frechet_distance(base: Tensor, erased: Tensor) -> tuple[float, float]:
    """(Frechet distance of the features' normal distributions, the shrinkage used). base: [n, F].  erased: [m, F].

        |mu_b - mu_e|^2 + tr(C_b + C_e - 2 (C_b^1/2 C_e C_b^1/2)^1/2)

    As FID, but in the judge's features and with covariances shrunk to a multiple of the identity (`shrinkage`, the mean
    of both sets' for both), since there are far fewer pictures than FID's tens of thousands: without it the
    covariances are singular. Numbers of different counts of pictures or different judges cannot be compared, nor any
    with published FIDs. (NaN, NaN) for fewer than two pictures.
    """
    base, erased = (part.cpu().double() for part in (base, erased))
    if min(len(base), len(erased)) < 2:
        return float("nan"), float("nan")
    weight = (shrinkage(base) + shrinkage(erased)) / 2

    def shrunk(features: Tensor) -> Tensor:
        covariance = features.T.cov(correction=0).reshape(features.shape[1], -1)
        scale = covariance.trace() / len(covariance)
        return (1 - weight) * covariance + weight * scale * torch.eye(len(covariance), dtype=torch.float64)

    first, second = shrunk(base), shrunk(erased)
    values, vectors = torch.linalg.eigh(first)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    shared = torch.linalg.eigvalsh(root @ second @ root).clamp_min(0).sqrt().sum()
    means = (base.mean(dim=0) - erased.mean(dim=0)).square().sum()
    return float((means + first.trace() + second.trace() - 2 * shared).clamp_min(0)), weight
