"""How erasure LoRAs are trained, as the artist sets it."""

from collections.abc import Callable
from dataclasses import asdict, dataclass

from ..method.loss import SQUARED
from ..method.schedule import Cfis, Timesteps
from ..method.train import TrainSettings
from ..presets.table10 import LoraRow, auto_lora


@dataclass(frozen=True)
class TrainOptions:
    """How erasure LoRAs are trained; None stands for Table 10's value of each concept's type.

    form: one of mace.method.loss.LOSSES.  end_of_text: whether Eq. 3's tokens include end-of-text and padding.
    projections: "both", "keys" or "values".  side_by_side: concepts in one forward pass, None for what memory holds.
    save_memory: recompute the blocks in the backward pass; else only where one concept alone does not fit without.
    again: whether LoRAs and states that are kept are passed over.  focus: whether A is that of mace.method.focus.
    """

    rank: int | None = None
    steps: int | None = None
    learning_rate: float | None = None
    form: str = SQUARED
    end_of_text: bool = False
    timesteps: Timesteps = Cfis()
    projections: str = "both"
    seed: int = 0
    side_by_side: int | None = None
    save_memory: bool = False
    again: bool = False
    focus: bool = False
    by_type: Callable[[str], LoraRow] = auto_lora

    def settings(self, type: str) -> TrainSettings:
        """The settings of a concept of this type."""
        usual = self.by_type(type)
        return TrainSettings(
            rank=self.rank or usual.rank,
            steps=self.steps or usual.steps,
            learning_rate=self.learning_rate or usual.learning_rate,
            seed=self.seed,
            timesteps=self.timesteps,
        )

    def record(self, type: str, images: int) -> dict:
        """The settings as a set's file and a checkpoint's provenance state them."""
        chosen = self.settings(type)
        timesteps = asdict(chosen.timesteps)
        return {
            "rank": chosen.rank,
            "steps": chosen.steps,
            "learning_rate": chosen.learning_rate,
            "weight_decay": chosen.weight_decay,
            "clip": chosen.clip,
            "seed": chosen.seed,
            "loss": self.form,
            "end_of_text": self.end_of_text,
            "timesteps": f"CFIS {timesteps}" if timesteps else "uniform",
            "projections": self.projections,
            "focus": self.focus,
            "images": images,
        }
