"""Masks from cross-attention: where a concept's tokens are looked at is where the concept is."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .moments import working_device

BINS = 256


def otsu(values: Tensor) -> Tensor:
    """Otsu's threshold of each row of values [B, n] in 0..1, [B]: the cut that parts the two classes' means most.

    N. Otsu, "A threshold selection method from gray-level histograms", 1979, on BINS bins; the threshold is the lower
    edge of the first bin of the upper class. Where several cuts are equally good, their middle is taken.
    """
    bins = (values.clamp(0, 1) * (BINS - 1)).round().long()
    counts = torch.zeros(len(values), BINS, dtype=torch.float64, device=working_device(values.device))
    counts.scatter_add_(1, bins.to(counts.device), torch.ones_like(bins, dtype=torch.float64, device=counts.device))
    levels = torch.arange(BINS, dtype=torch.float64, device=counts.device)
    below = counts.cumsum(dim=1)[:, :-1]
    above = values.shape[1] - below
    sums = (counts * levels).cumsum(dim=1)
    means = sums[:, :-1] / below.clamp_min(1), (sums[:, -1:] - sums[:, :-1]) / above.clamp_min(1)
    between = below * above * (means[0] - means[1]) ** 2
    best = between >= between.amax(dim=1, keepdim=True) * (1 - 1e-9)
    cut = (best * (levels[:-1] + 1)).sum(dim=1) / best.sum(dim=1)
    return ((cut - 0.5) / (BINS - 1)).to(values)


def average_maps(maps: list[Tensor]) -> Tensor:
    """Attention maps [B, h, w] of several layers, on grids of several sizes, as one on the finest, [B, h, w].

    Each layer counts alike: its map is divided by its mean, which grids and numbers of heads change.
    """
    height, width = (max(m.shape[dim] for m in maps) for dim in (1, 2))
    total = torch.zeros(len(maps[0]), height, width, device=maps[0].device)
    for layer in maps:
        scaled = layer.float() / layer.float().mean(dim=(1, 2), keepdim=True).clamp_min(1e-12)
        total += F.interpolate(scaled[:, None], (height, width), mode="bilinear", align_corners=False)[:, 0]
    return total / len(maps)


def mask_of_map(maps: Tensor, height: int, width: int) -> Tensor:
    """Masks [B, height, width] of 0 and 1 from attention maps [B, h, w]: enlarged, stretched to 0..1, cut by Otsu.

    A map that is the same everywhere says nothing of a place; its mask is empty.
    """
    maps = maps.float()
    flat = maps.flatten(1)
    # Judged before enlarging, whose rounding would make a pattern of nothing.
    says_something = flat.amax(dim=1) - flat.amin(dim=1) > 1e-5 * flat.amax(dim=1).abs()
    large = F.interpolate(maps[:, None], (height, width), mode="bicubic", align_corners=False)[:, 0]
    low, high = large.amin(dim=(1, 2), keepdim=True), large.amax(dim=(1, 2), keepdim=True)
    stretched = (large - low) / (high - low).clamp_min(1e-12)
    cut = otsu(stretched.flatten(1)).view(-1, 1, 1)
    return ((stretched >= cut) & says_something.view(-1, 1, 1)).float()
