"""What a detector says of a picture, and what detectors and segmenters are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Found:
    """The things found in one picture, by falling score, on the CPU.

    boxes: float32 [k, 4] as x1, y1, x2, y2 in pixels of the picture.  scores: float32 [k] in 0..1.  labels: what each
    is, "" where nothing is said.
    """

    boxes: Tensor
    scores: Tensor
    labels: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.scores)

    def first(self, count: int) -> "Found":
        """The best `count` of them."""
        return Found(self.boxes[:count], self.scores[:count], self.labels[:count])


class Detector(Protocol):
    """Finds by words."""

    def detect(self, pictures: Tensor, phrase: str, box_threshold: float, text_threshold: float) -> list[Found]:
        """What is found in each of pictures [n, H, W, 3] in 0..1. phrase: things parted by full stops or commas.

        box_threshold: the least score of a box.  text_threshold: the least score of a word in its label.
        """


class Segmenter(Protocol):
    """Cuts out what stands in a box."""

    def segment(self, pictures: Tensor, boxes: Sequence[Tensor]) -> list[Tensor]:
        """Masks [k, H, W] of 0 and 1 on the CPU for the boxes [k, 4] of each of pictures [n, H, W, 3]; k may be 0."""
