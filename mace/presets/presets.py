"""What "auto" means: the paper's Table 10, or settings found on another model, from one JSON file a model.

Such a file has "name", how the preset is called, and "found_on", what it was found on and where that is told; then,
each only where it is not Table 10's: "lora" with rank, steps and learning_rate by type of concept ("*": all other
types), "refine" with lambda1, lambda3, mu and metric of Eq. 19, "fuse" with lambda2, lambda3, mu and pull (one of
mace.method.fuse.PULLS) of Eq. 7, and "loss", "end_of_text", "focus", "lambda1_squared", "closed_form" as in `Preset`.
"end_of_text" is false where it is not told, though the paper's is true; Save Preset always tells it. A weight is a
number, or [number, power, n] for one that grows with the list: times (count / n)^power for lists longer than n.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Generic, Literal, TypeVar

from pydantic import ConfigDict, Field

from ..concepts.concept import Concept
from ..formats.records import Counted, Record, RecordError, Text, Weight, read_record
from ..messages import MessageError
from ..method.fuse import PULLS, TO_REFINED, FuseWeights
from ..method.loss import LOSSES, SQUARED
from ..method.refine import ALIKE, METRICS, RefineWeights
from .table10 import LoraRow, auto_lora, auto_weights

EVERY_TYPE = "*"


class PresetError(MessageError):
    """A preset's file that cannot be read; the message names the file and what is wrong."""


def length_of(concepts: Sequence[Concept]) -> int:
    """How long a list is to the refinement's weights: each of its targets and aliases has sums of its own in Eq. 19."""
    return sum(len(concept.phrases) for concept in concepts)


@dataclass(frozen=True)
class Preset:
    """Settings of the whole of MACE.

    lora: rank, steps and rate by type.  refine: the weights of Eq. 19, fuse: those of Eq. 7, by the list's length (see
    `ListWeights`); None for Table 10's.
    loss: one of mace.method.loss.LOSSES.  end_of_text: whether Eq. 3's tokens include end-of-text and padding.
    focus: whether LoRAs read the directions of mace.method.focus.  found_on: what model, and where that is told.
    lambda1_squared: whether the refinement's lambda1 counts twice, as in the published code.
    closed_form: whether Erase Concepts trains nothing: the refinement is all, and moves the concepts' own words too.
    """

    lora: Callable[[str], LoraRow]
    refine: "ListWeights[RefineWeights] | None" = None
    fuse: "ListWeights[FuseWeights] | None" = None
    loss: str = SQUARED
    end_of_text: bool = False
    focus: bool = False
    found_on: str = ""
    lambda1_squared: bool = False
    closed_form: bool = False

    @property
    def own_words(self) -> bool | None:
        """Whether the refinement moves the concepts' own words; None: where no LoRA can be trained for them."""
        return True if self.closed_form else None

    def own_weights(self, concepts: Sequence[Concept]) -> RefineWeights | None:
        """The weights of Eq. 19 that the preset has for a list, None for Table 10's."""
        return None if self.refine is None else self.refine(length_of(concepts))

    def weights(self, concepts: Sequence[Concept]) -> RefineWeights:
        """What Eq. 19 is solved with for a list, mixed types included. Raises ValueError for an empty one."""
        usual = self.own_weights(concepts) or auto_weights(concepts)
        return replace(usual, lambda1=usual.lambda1**2) if self.lambda1_squared else usual

    @property
    def refine_forms(self) -> tuple[str, ...] | None:
        """lambda1, lambda3 and mu of `weights` as they are for a list of any length; None for Table 10's."""
        if self.refine is None:
            return None
        lambda1, *others = self.refine.growing
        return tuple(own.form for own in (lambda1.squared() if self.lambda1_squared else lambda1, *others))


@dataclass(frozen=True)
class Growing:
    """A weight that grows with the list: value (count / beyond)^power for lists longer than `beyond`."""

    value: float
    power: float = 0.0
    beyond: float = 1.0

    def at(self, count: int) -> float:
        """The weight for so many concepts."""
        return self.value * max(1.0, count / self.beyond) ** self.power

    def squared(self) -> "Growing":
        """The weight's square."""
        return replace(self, value=self.value**2, power=2 * self.power)

    @property
    def form(self) -> str:
        """The weight in writing, the same for every list; one that does not grow as its number."""
        grows = self.value and self.power
        return f"{self.value!r} (n / {self.beyond:g})^{self.power:g}" if grows else repr(self.value)


_Weights = TypeVar("_Weights", RefineWeights, FuseWeights)


@dataclass(frozen=True)
class ListWeights(Generic[_Weights]):
    """Weights by the length of a list: for the refinement that of `length_of`, for the fusion the number of concepts.

    growing: each, in the order of `made`.  others: what else `made` takes.
    """

    made: type[_Weights]
    growing: tuple[Growing, ...]
    others: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, count: int) -> _Weights:
        """The weights for a list of so many."""
        return self.made(*(own.at(count) for own in self.growing), **self.others)


class _Row(Record):
    rank: Counted
    steps: Counted
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)]


# A weight, or one that grows; see `Growing`.
_Power = Annotated[float, Field(ge=-10, le=10)]
_Beyond = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Weight = Weight | tuple[Weight] | tuple[Weight, _Power] | tuple[Weight, _Power, _Beyond]


class _Refine(Record):
    model_config = ConfigDict(extra="forbid")

    lambda1: _Weight = 0.0
    lambda3: _Weight = 0.0
    mu: _Weight = 0.0
    metric: Literal[METRICS] = ALIKE


class _Fuse(Record):
    model_config = ConfigDict(extra="forbid")

    lambda2: _Weight = 0.0
    lambda3: _Weight = 0.0
    mu: _Weight = 0.0
    pull: Literal[PULLS] = TO_REFINED


class _File(Record):
    model_config = ConfigDict(extra="forbid")

    name: Annotated[Text, Field(min_length=1, max_length=100)]
    found_on: Text = ""
    lora: dict[str, _Row] | None = None
    refine: _Refine | None = None
    fuse: _Fuse | None = None
    loss: Literal[LOSSES] = SQUARED
    end_of_text: bool = False
    focus: bool = False
    lambda1_squared: bool = False
    closed_form: bool = False


def read_preset(path: Path) -> tuple[str, Preset]:
    """(name, preset) of a file. Raises PresetError."""
    return preset_of_text(path.read_bytes(), path.name)


def preset_of_text(text: bytes, named: str) -> tuple[str, Preset]:
    """(name, preset) of a file's text. named: what errors call it. Raises PresetError."""
    try:
        entry = read_record(_File, text, "it")
        rows = entry.lora
        if rows is not None and EVERY_TYPE not in rows:
            raise RecordError(f"its lora has no row for all other types ({EVERY_TYPE!r})")
    except RecordError as error:
        raise PresetError(f"the preset {named} cannot be read: {error}") from None
    preset = Preset(
        auto_lora if rows is None else _lora({kind: LoraRow(**dict(row)) for kind, row in rows.items()}),
        None if entry.refine is None else _weights(dict(entry.refine), RefineWeights),
        None if entry.fuse is None else _weights(dict(entry.fuse), FuseWeights),
        entry.loss,
        entry.end_of_text,
        entry.focus,
        entry.found_on,
        entry.lambda1_squared,
        entry.closed_form,
    )
    return entry.name, preset


def _lora(rows: Mapping[str, LoraRow]) -> Callable[[str], LoraRow]:
    return lambda type: rows.get(type, rows[EVERY_TYPE])


def _weights(entry: Mapping, made: type[_Weights]) -> ListWeights[_Weights]:
    """Of a part of a file, whose weights stand in the order of `made`."""
    others = {name: value for name, value in entry.items() if isinstance(value, str)}
    given = (value for name, value in entry.items() if name not in others)
    return ListWeights(
        made, tuple(Growing(*value) if isinstance(value, tuple) else Growing(value) for value in given), others
    )


PAPER = "paper (Table 10)"

# In this order: what is offered is a promise.
_FILES = ("mace_demo.json", "mace_demo_sd3.json", "mace_demo_lists.json", "paper_released.json")
PRESETS: dict[str, Preset] = {
    # The published results came from code whose loss has end-of-text in it.
    PAPER: Preset(auto_lora, end_of_text=True),
    **dict(read_preset(Path(__file__).with_name(name)) for name in _FILES),
}
