"""What "auto" means: the paper's Table 10, or settings found on another model and named after it."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from ..method.fuse import FuseWeights
from ..method.loss import SQUARED
from ..method.refine import READING, RefineWeights
from .table10 import LoraRow, auto_lora


@dataclass(frozen=True)
class Preset:
    """Settings of the whole of MACE.

    lora: rank, steps and rate by type.  refine: the weights of Eq. 19, fuse: those of Eq. 7, by the number of concepts;
    None for Table 10's.
    loss: one of mace.method.loss.LOSSES.  end_of_text: whether Eq. 3's tokens include end-of-text and padding.
    focus: whether LoRAs read the directions of mace.method.focus.
    """

    lora: Callable[[str], LoraRow]
    refine: Callable[[int], RefineWeights] | None = None
    fuse: Callable[[int], FuseWeights] | None = None
    loss: str = SQUARED
    end_of_text: bool = False
    focus: bool = False


def _demo_lora(type: str) -> LoraRow:
    """A style is in every part of the picture, and goes at a rate that leaves the things in it."""
    return LoraRow(rank=1, steps=50, learning_rate=1.5e-3 if type == "style" else 5e-3)


def _demo_refine(count: int) -> RefineWeights:
    """Found for ten concepts, and as good for one; the sums of a longer list would outweigh a prior that stays."""
    longer = max(1.0, count / 10)
    return RefineWeights(lambda1=1e-4 * longer, mu=1e5 * longer, metric=READING)


def _demo_fuse(count: int) -> FuseWeights:
    """By the number of concepts: the sums of Eq. 7 grow with the list and the prior's does not, so a fixed lambda2
    would hold a short list back more than a long one."""
    return FuseWeights(lambda2=1e-4 * count, mu=1e4 * math.sqrt(count))


PAPER = "paper (Table 10)"
DEMO = "demo model (mace_demo)"

PRESETS: dict[str, Preset] = {
    PAPER: Preset(auto_lora),
    # Found by the search that docs/search.md tells of, with the prior of captions over the demo model's vocabulary.
    DEMO: Preset(
        _demo_lora,
        _demo_refine,
        _demo_fuse,
        end_of_text=True,
        focus=True,
    ),
}
