"""What an artist wants of Erase Concepts, and what it gives."""

from collections.abc import Sequence
from dataclasses import dataclass

from ...mace.formats.lora_set import LoraSet
from ...mace.method.prior import Prior
from ...mace.presets.presets import Preset


@dataclass(frozen=True)
class Wanted:
    """What the artist sets. preset: all settings.  width, height: of training images in pixels, 0 for the model's
    own.  strengths: as in `mace.concepts.strengths`.  prior: what to keep, None for built-in captions where the weights
    need them.  find_aliases: whether the model is asked for them.  lean: -1 (gentle) to 1 (strong), see
    `mace.presets.leaning`.  compared: whether pictures before and after come last, for the estimate.  keep_near:
    whether the words next to the concepts are preserved, see `kept_beside`.  notes: lines for the artist that are said
    at the start.
    """

    preset: Preset
    width: int
    height: int
    seed: int
    strengths: str = ""
    prior: Prior | None = None
    find_aliases: bool = False
    lean: float = 0.0
    compared: bool = False
    keep_near: bool = False
    notes: Sequence[str] = ()

    @property
    def asks(self) -> bool:
        """Whether the model is asked which words draw the same and which do not."""
        return self.find_aliases or self.keep_near

    @property
    def drawing(self) -> dict:
        """Size and seed of the training images."""
        return dict(width=self.width, height=self.height, seed=self.seed)


@dataclass(frozen=True)
class Erased:
    """model: the erased MODEL.  loras: None where none are trained.  lines: for the artist.  listed: [target, strength]
    of every concept."""

    model: object
    loras: LoraSet | None
    lines: list[str]
    listed: list
