"""Pictures and masks that come from elsewhere: read in the shapes and scales that nodes use, or refused by name."""

from collections.abc import Iterator

import torch
from torch import Tensor

from .kept import as_floats

CHANNELS = (1, 3, 4)
# Masks read at once: a batch of all concepts' takes gigabytes.
TOGETHER = 16
# Upscalers and VAEs overshoot 0..1 by a little; beyond this a picture is on another scale.
_OVERSHOOT = 0.5


def read_pictures(given: Tensor, field: str) -> Tensor:
    """Pictures float32 [n, H, W, 3] in 0..1.

    given: [n, H, W, C] or one picture [H, W, C]; one channel is grey, a fourth is left out. Whole numbers of eight bits
    are 0..255.  field: the input, for errors. Raises ValueError for an empty batch, another shape or scale, and values
    that are not finite.
    """
    pictures = as_floats(_tensor(given, field))
    pictures = pictures[None] if pictures.dim() == 3 and pictures.shape[-1] in CHANNELS else pictures
    if pictures.dim() != 4 or pictures.shape[-1] not in CHANNELS:
        raise ValueError(f"{field}: {list(given.shape)} are no pictures [n, height, width, 3]; connect an IMAGE")
    if not pictures.numel():
        raise ValueError(f"{field}: the batch {list(given.shape)} holds no picture; connect one that does")
    pictures = _on_scale(pictures[..., :3], field, "picture")
    return pictures.expand(-1, -1, -1, 3) if pictures.shape[-1] == 1 else pictures


def read_masks(given: Tensor, field: str) -> Iterator[Tensor]:
    """Masks float32 [n, H, W] in 0..1, at most TOGETHER of them at a time; raises as it goes.

    given: [H, W], [n, H, W], [n, H, W, 1], or several a picture, [n, k, H, W], one after the other. Truth values and
    whole numbers of eight bits are read too.  field: the input, for errors. Raises ValueError as `read_pictures` does,
    and for pictures in place of masks.
    """
    rows = mask_rows(given, field)
    for first in range(0, len(rows), TOGETHER):
        yield _on_scale(as_floats(rows[first : first + TOGETHER]), field, "mask", first)


def mask_rows(given: Tensor, field: str) -> Tensor:
    """Masks [n, H, W] as they are given, not read yet: in their own dtype and scale, and no copy of them.

    Raises ValueError for what `read_masks` refuses by its shape.
    """
    masks = _tensor(given, field)
    if masks.dim() == 4 and masks.shape[-1] == 1:
        masks = masks[..., 0]
    elif masks.dim() == 4 and masks.shape[-1] in CHANNELS:
        raise ValueError(f"{field}: {list(given.shape)} are pictures, no masks; put Convert Image to Mask in between")
    if masks.dim() not in (2, 3, 4):
        raise ValueError(f"{field}: {list(given.shape)} are no masks [n, height, width]; connect a MASK")
    masks = masks.reshape(-1, *masks.shape[-2:])
    if not masks.numel():
        raise ValueError(f"{field}: the batch {list(given.shape)} holds no mask; connect one that does")
    return masks


def _tensor(given: Tensor, field: str) -> Tensor:
    if not isinstance(given, Tensor) or given.is_complex():
        kind = type(given).__name__ if not isinstance(given, Tensor) else given.dtype
        raise ValueError(f"{field}: {kind} is neither pictures nor masks; connect an IMAGE or a MASK")
    return given


def _on_scale(values: Tensor, field: str, what: str, first: int = 0) -> Tensor:
    """The values, cut off at 0 and 1. Raises ValueError, with the number, for one that is on another scale.

    first: how many came before these.
    """
    each = values.flatten(1)
    low, high = each.amin(dim=1), each.amax(dim=1)
    # Compared so that NaN, which is not inside of any range, counts as outside.
    wrong = ~((low >= -_OVERSHOOT) & (high <= 1 + _OVERSHOOT))
    if wrong.any():
        place = int(wrong.nonzero()[0, 0])
        number = first + place + 1
        if not torch.isfinite(each[place]).all():
            raise ValueError(
                f"{field}: {what} {number} holds values that are not finite (NaN or infinity): check the model, and "
                "use its VAE in fp32 or bf16"
            )
        raise ValueError(
            f"{field}: {what} {number} holds values from {float(low[place]):g} to {float(high[place]):g}, and 0 to 1 "
            "is the scale; divide what goes to 255 by 255"
        )
    return values.clamp(0, 1)
