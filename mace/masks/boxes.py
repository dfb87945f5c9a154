"""Boxes of things in pictures: read from other nodes, chosen among, filled."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..messages import MessageError

BEST, ALL = "best", "all"
CHOICES = (ALL, BEST)

# Boxes [k, 4] as x1, y1, x2, y2 in pixels, scores [k], labels: of one picture.
Boxes = tuple[Tensor, Tensor, tuple[str, ...]]


def sides(boxes: Tensor) -> Tensor:
    """Whether each box [k, 4] has an area, [k]."""
    return (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])


def clipped(boxes: Tensor, height: int, width: int) -> Tensor:
    """Boxes [k, 4] cut off at the edges of their picture."""
    limits = torch.tensor([width, height, width, height], dtype=boxes.dtype, device=boxes.device)
    return boxes.clamp_min(0).minimum(limits)


def read_boxes(value: object, pictures: int, height: int, width: int) -> list[Boxes]:
    """The host's BOUNDING_BOX as boxes of each picture, by falling score.

    One box {"x", "y", "width", "height"} or a list of them holds for every picture; a list of lists has one for each
    picture (None or empty: nothing there). "score" and "label" are read too; where they are missing or None the score
    is 1 and the label empty. What lies outside the picture is cut off. Raises ValueError for anything else, for numbers
    that are not finite, and for another number of lists than pictures.
    """
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise MessageError(f"boxes: {type(value).__name__} is not a BOUNDING_BOX: connect a node that gives boxes")
    by_picture = list(value)
    if by_picture and all(isinstance(entry, Mapping) for entry in by_picture):
        by_picture = [by_picture]
    if len(by_picture) not in (0, 1, pictures):
        raise ValueError(
            f"there are boxes for {len(by_picture)} images, not for {pictures}: connect the pictures output of Concept "
            "Images to the node that makes the boxes"
        )
    read = [_one_picture(entry or (), height, width) for entry in by_picture]
    return read * pictures if len(read) == 1 else read or [_one_picture((), height, width)] * pictures


def _one_picture(entries: object, height: int, width: int) -> Boxes:
    rows, scores, labels = [], [], []
    if not isinstance(entries, Sequence) or isinstance(entries, str):
        raise MessageError(f"boxes: {entries!r} is not a list of boxes with x, y, width and height")
    for entry in entries:
        try:
            x, y, w, h = (float(entry[name]) for name in ("x", "y", "width", "height"))
            score, label = (entry.get(name) for name in ("score", "label"))
            score = 1.0 if score is None else float(score)
        except (AttributeError, IndexError, TypeError, KeyError, OverflowError, ValueError, RuntimeError) as error:
            raise MessageError(f"boxes: {entry!r} is not a box with x, y, width and height") from error
        if not all(map(math.isfinite, (x, y, w, h, score))):
            raise MessageError(f"boxes: {entry!r} holds a number that is not finite (NaN or infinity)")
        rows.append((x, y, x + w, y + h))
        scores.append(score)
        labels.append("" if label is None else str(label))
    return ordered(torch.tensor(rows, dtype=torch.float32).reshape(-1, 4), torch.tensor(scores), labels, height, width)


def ordered(boxes: Tensor, scores: Tensor, labels: Sequence[str], height: int, width: int) -> Boxes:
    """Boxes [k, 4] cut off at the picture's edges, those without an area dropped, by falling score; equals in order."""
    boxes, scores = clipped(boxes.float(), height, width), scores.float()
    kept = sides(boxes).nonzero()[:, 0]
    order = kept[scores[kept].argsort(descending=True, stable=True)]
    return boxes[order], scores[order], tuple(labels[place] for place in order.tolist())


def box_masks(boxes: Tensor, height: int, width: int) -> Tensor:
    """Masks [k, height, width] of 0 and 1: the pixels whose middle lies in the box, at least one for each box."""
    y = torch.arange(height, device=boxes.device) + 0.5
    x = torch.arange(width, device=boxes.device) + 0.5
    left, top, right, bottom = (boxes[:, place, None] for place in range(4))
    # The pixel that holds the middle of a box is in it, however small the box is.
    column = ((left + right) / 2).floor().clamp(0, width - 1) + 0.5
    row = ((top + bottom) / 2).floor().clamp(0, height - 1) + 0.5
    across = ((x >= left) & (x < right)) | (x == column)
    down = ((y >= top) & (y < bottom)) | (y == row)
    return (down[:, :, None] & across[:, None, :]).float()
