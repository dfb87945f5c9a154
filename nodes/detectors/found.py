"""What a detector found in a picture."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Found:
    """Boxes of one picture, on the CPU, the surest first.

    boxes: float32 [k, 4], x0 y0 x1 y1 in pixels of the picture, inside it.  scores: float32 [k] in 0..1, falling.
    labels: the words of the phrase that each box was found for, which may be none ("").
    """

    boxes: Tensor
    scores: Tensor
    labels: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.scores)
