"""Masks: from cross-attention (where a concept's tokens are looked at is where it is), and of what was found."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..method.moments import working_device

BINS = 256
UNION, LARGEST = "union", "largest"
COMBINED = (UNION, LARGEST)


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

    A map that is the same everywhere says nothing of a place; its mask is empty. Raises ValueError for maps that are
    not finite.
    """
    maps = maps.float()
    if not torch.isfinite(maps).all():
        raise ValueError("the attention maps hold values that are not finite (NaN or infinity): check the model")
    flat = maps.flatten(1)
    # Judged before enlarging, whose rounding would make a pattern of nothing.
    says_something = flat.amax(dim=1) - flat.amin(dim=1) > 1e-5 * flat.amax(dim=1).abs()
    large = F.interpolate(maps[:, None], (height, width), mode="bicubic", align_corners=False)[:, 0]
    low, high = large.amin(dim=(1, 2), keepdim=True), large.amax(dim=(1, 2), keepdim=True)
    stretched = (large - low) / (high - low).clamp_min(1e-12)
    cut = otsu(stretched.flatten(1)).view(-1, 1, 1)
    return ((stretched >= cut) & says_something.view(-1, 1, 1)).float()


def one_mask(things: Tensor, combine: str = UNION, least: float = 0.0) -> Tensor:
    """One mask [H, W] of the masks [k, H, W] of k things; of zeros where none is left.

    Things that cover less than the share `least` of the picture are left out. combine: all of them ("union"), or the
    one that covers most ("largest"; the first among equals).
    """
    shares = things.float().mean(dim=(1, 2))
    kept = things[shares >= least]
    if not len(kept):
        return torch.zeros(things.shape[1:], device=things.device)
    if combine == LARGEST:
        # The first of equals: argmax promises none.
        areas = kept.float().sum(dim=(1, 2))
        return kept[int((areas == areas.max()).nonzero()[0, 0])]
    return kept.amax(dim=0)


def grow(masks: Tensor, pixels: int) -> Tensor:
    """Masks [n, H, W] grown by a disc: each pixel takes the largest value no farther than `pixels` from it.

    Below 0 they shrink: what is masked beyond the picture's edges counts as there. 0 gives the masks themselves.
    """
    if pixels == 0:
        return masks
    if pixels < 0:
        return 1 - grow(1 - masks, -pixels)
    height, width = masks.shape[1:]
    grown = masks
    for rows in range(min(pixels, height - 1) + 1):
        # A disc is a stack of lines, and a line's largest value is a pooling.
        half = min(math.isqrt(pixels * pixels - rows * rows), width - 1)
        line = F.max_pool1d(masks, 2 * half + 1, stride=1, padding=half)
        if rows == 0:
            grown = line.clone()
            continue
        grown[:, rows:] = torch.maximum(grown[:, rows:], line[:, :-rows])
        grown[:, :-rows] = torch.maximum(grown[:, :-rows], line[:, rows:])
    return grown


def feather(masks: Tensor, pixels: int) -> Tensor:
    """Masks [n, H, W] with soft edges: blurred by a Gaussian of standard deviation pixels / 2, cut off at `pixels`.

    The picture's edges are continued outwards. 0 gives the masks themselves.
    """
    if pixels == 0:
        return masks
    offsets = torch.arange(-pixels, pixels + 1, dtype=torch.float32, device=masks.device)
    weights = torch.exp(-2 * (offsets / pixels) ** 2)
    weights = weights / weights.sum()
    wide = F.pad(masks[:, None], (pixels, pixels, 0, 0), mode="replicate")
    across = F.conv2d(wide, weights.view(1, 1, 1, -1))
    tall = F.pad(across, (0, 0, pixels, pixels), mode="replicate")
    return F.conv2d(tall, weights.view(1, 1, -1, 1))[:, 0].clamp(0, 1)
