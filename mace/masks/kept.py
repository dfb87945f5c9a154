"""Masks as they are kept: a byte a pixel, since many concepts have many of them."""

import torch
from torch import Tensor


def as_bytes(masks: Tensor) -> Tensor:
    """Masks [..., H, W] in 0..1 as uint8 on the CPU, 255 for 1. One half stays at or above one half."""
    return (masks.float() * 255).round().to("cpu", torch.uint8)


def as_floats(masks: Tensor) -> Tensor:
    """Masks as float32: of eight bits in 0..1, others as they are."""
    return masks.float() / 255 if masks.dtype == torch.uint8 else masks.float()
