"""What "auto" means: the paper's Table 10, or settings found on another model and named after it."""

from collections.abc import Callable
from dataclasses import dataclass

from .attention import SQUARED
from .fuse import FuseWeights
from .refine import RefineWeights
from .settings import LoraRow, auto_lora


@dataclass(frozen=True)
class Preset:
    """Settings of the whole of MACE.

    lora: rank, steps and rate by type.  refine, fuse: the weights of Eq. 19 and Eq. 7, None for Table 10's.
    loss: one of mace.attention.LOSSES.  end_of_text: whether Eq. 3's tokens include end-of-text and padding.
    focus: w of mace.focus, 0 for none.
    """

    lora: Callable[[str], LoraRow]
    refine: RefineWeights | None = None
    fuse: FuseWeights | None = None
    loss: str = SQUARED
    end_of_text: bool = False
    focus: float = 0.0


PAPER = "paper (Table 10)"

PRESETS: dict[str, Preset] = {PAPER: Preset(auto_lora)}
