"""What "auto" means: the paper's Table 10, or settings found on another model, from one JSON file a model.

Such a file has "name", how the preset is called, and "found_on", what it was found on and where that is told; then,
each only where it is not Table 10's: "lora" with rank, steps and learning_rate by type of concept ("*": all other
types), "refine" with lambda1, lambda3, mu and metric of Eq. 19, "fuse" with lambda2, lambda3 and mu of Eq. 7, and
"loss", "end_of_text", "focus" as in `Preset`. A weight is a number, or [number, power, n] for one that grows with the
list: times (count / n)^power for lists longer than n.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..method.fuse import FuseWeights
from ..method.loss import LOSSES, SQUARED
from ..method.refine import ALIKE, RefineWeights
from .table10 import LoraRow, auto_lora

EVERY_TYPE = "*"


class PresetError(ValueError):
    """A preset's file that cannot be read; the message names the file and what is wrong."""


@dataclass(frozen=True)
class Preset:
    """Settings of the whole of MACE.

    lora: rank, steps and rate by type.  refine: the weights of Eq. 19, fuse: those of Eq. 7, by the number of concepts;
    None for Table 10's.
    loss: one of mace.method.loss.LOSSES.  end_of_text: whether Eq. 3's tokens include end-of-text and padding.
    focus: whether LoRAs read the directions of mace.method.focus.  found_on: what model, and where that is told.
    """

    lora: Callable[[str], LoraRow]
    refine: Callable[[int], RefineWeights] | None = None
    fuse: Callable[[int], FuseWeights] | None = None
    loss: str = SQUARED
    end_of_text: bool = False
    focus: bool = False
    found_on: str = ""


@dataclass(frozen=True)
class Growing:
    """A weight that grows with the list: value (count / beyond)^power for lists longer than `beyond`."""

    value: float
    power: float = 0.0
    beyond: float = 1.0

    def at(self, count: int) -> float:
        """The weight for so many concepts."""
        return self.value * max(1.0, count / self.beyond) ** self.power


def read_preset(path: Path) -> tuple[str, Preset]:
    """(name, preset) of a file. Raises PresetError."""
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
        return str(entry["name"]), _preset(entry)
    except (AttributeError, KeyError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise PresetError(f"the preset {path.name} cannot be read: {error!r}") from None


def _preset(entry: Mapping) -> Preset:
    known = {"name", "found_on", "lora", "refine", "fuse", "loss", "end_of_text", "focus"}
    if set(entry) - known:
        raise ValueError(f"unknown entries: {', '.join(sorted(set(entry) - known))}")
    if entry.get("loss", SQUARED) not in LOSSES:
        raise ValueError(f"loss is one of {', '.join(LOSSES)}")
    return Preset(
        auto_lora if "lora" not in entry else _lora(entry["lora"]),
        None if "refine" not in entry else _weights(entry["refine"], RefineWeights, ("lambda1", "lambda3", "mu")),
        None if "fuse" not in entry else _weights(entry["fuse"], FuseWeights, ("lambda2", "lambda3", "mu")),
        entry.get("loss", SQUARED),
        bool(entry.get("end_of_text", False)),
        bool(entry.get("focus", False)),
        str(entry.get("found_on", "")),
    )


def _lora(entry: Mapping) -> Callable[[str], LoraRow]:
    rows = {
        kind: LoraRow(int(row["rank"]), int(row["steps"]), float(row["learning_rate"])) for kind, row in entry.items()
    }
    usual = rows[EVERY_TYPE]
    return lambda type: rows.get(type, usual)


def _weights(entry: Mapping, made: type, names: tuple[str, ...]) -> Callable[[int], RefineWeights | FuseWeights]:
    others = {"metric": str(entry.get("metric", ALIKE))} if made is RefineWeights else {}
    if set(entry) - {*names, *others}:
        raise ValueError(f"unknown weights: {', '.join(sorted(set(entry) - {*names, *others}))}")
    given = {name: value if isinstance(value, list) else [value] for name, value in entry.items() if name in names}
    growing = {name: Growing(*map(float, value)) for name, value in given.items()}
    if not all(math.isfinite(number) for own in growing.values() for number in vars(own).values()):
        raise ValueError("weights are finite numbers")
    made(**{name: own.at(1) for name, own in growing.items()}, **others)  # raises where it is out of range
    return lambda count: made(**{name: own.at(count) for name, own in growing.items()}, **others)


PAPER = "paper (Table 10)"

# In this order: what is offered is a promise.
_FILES = ("mace_demo.json", "mace_demo_sd3.json", "mace_demo_lists.json")
PRESETS: dict[str, Preset] = {
    PAPER: Preset(auto_lora),
    **dict(read_preset(Path(__file__).with_name(name)) for name in _FILES),
}
