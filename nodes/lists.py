"""Lists of pictures, masks and boxes.

Some nodes give several pictures as one batch, others as a list, for which the host runs a node once an entry. Nodes
that take pictures, masks or boxes take both alike: they ask the host for whole lists (is_input_list), and it then gives
every input as one.
"""

import functools
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ..mace.concepts.images import ConceptImages, chain


def takes_lists(**joins: Callable[[Sequence], object]):
    """For `execute` of a node with is_input_list, which then is given one value an input.

    joins: by input, what makes one value of a list. Of other inputs a list of one alone is taken.
    """

    def wrap(execute):
        @functools.wraps(execute)
        def run(cls, **given):
            return execute(cls, **{name: _joined(name, values, joins) for name, values in given.items()})

        return run

    return wrap


def _joined(name: str, values, joins: Mapping):
    # A DynamicCombo's own inputs.
    if isinstance(values, Mapping):
        return {inner: _joined(f"{name}.{inner}", value, joins) for inner, value in values.items()}
    if name in joins:
        return joins[name](values)
    if len(values) != 1:
        raise ValueError(
            f"{name}: a list of {len(values)} came in, and this node takes one. Only pictures, masks and boxes may be "
            "lists: connect one, or run the graph once for each"
        )
    return values[0]


def joined_pictures(parts: Sequence[Tensor]) -> Tensor:
    """IMAGEs [n, H, W, C] as one, in order. Raises ValueError for several sizes."""
    if len(parts) == 1:
        return parts[0]
    sizes = {tuple(part.shape[1:3]) for part in parts}
    if len(sizes) > 1:
        told = ", ".join(f"{width}x{height}" for height, width in sorted(sizes))
        raise ValueError(f"images: the pictures of a list have several sizes ({told}): make them one (Upscale Image)")
    channels = min(part.shape[-1] for part in parts)
    return torch.cat([part[..., :channels] for part in parts])


def all_masks(parts: Sequence[Tensor | None]) -> list[Tensor] | None:
    """MASKs in order, None where there is none."""
    return [part for part in parts if part is not None] or None


def joined_boxes(parts: Sequence) -> object:
    """BOUNDING_BOXes as one, a list of boxes for each picture in order.

    A part that holds lists is of several pictures; any other is of one.
    """
    if len(parts) == 1:
        return parts[0]
    joined: list = []
    for part in parts:
        if isinstance(part, Sequence) and part and all(own is None or isinstance(own, Sequence) for own in part):
            joined += part
        else:
            joined.append([part] if isinstance(part, Mapping) else part)
    return joined


def joined_images(parts: Sequence[tuple[ConceptImages, ...]]) -> tuple[ConceptImages, ...]:
    """Several nodes' training images as one. Raises ValueError as `chain` does."""
    return parts[0] if len(parts) == 1 else chain(*parts)
