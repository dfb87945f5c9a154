"""What files hold as JSON, each record checked by its schema: no file is taken at its word.

`read_record` is the one reader. It raises RecordError, with the place and what stands there, for whatever a damaged or
foreign file may hold: another type, a number that is not finite or has hundreds of digits, lists nested too deep.
"""

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from ..concepts.concept import TYPES, Concept
from ..concepts.templates import checked_template
from ..concepts.text import check_characters
from ..messages import MessageError
from ..method.refine import METRICS, RefineWeights
from .lora_layouts import Base

# Of what a message shows of a value.
_SHOWN = 80

# Whole numbers that a float holds exactly.
Count = Annotated[int, Field(ge=0, le=2**53)]
Counted = Annotated[int, Field(ge=1, le=2**53)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def _readable(text: str) -> str:
    check_characters(text, "a text")
    return text


def _template(text: str) -> str:
    checked_template(_readable(text))
    return text


Text = Annotated[str, AfterValidator(_readable)]
Template = Annotated[str, AfterValidator(_template)]


class RecordError(MessageError):
    """A record that is not what it should be; the message names the place and what stands there."""


class Record(BaseModel):
    """A JSON object. What later versions add to it is passed over."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")


class _Whole(Record):
    """A JSON object of these entries alone: another entry would change its meaning."""

    model_config = ConfigDict(extra="forbid")


class ConceptRecord(Record):
    """A concept, as `mace.concepts.concept.Concept`."""

    target: Annotated[Text, Field(min_length=1)]
    mapping: Text
    type: Literal[TYPES]
    aliases: tuple[Text, ...]
    templates: tuple[Template, ...]

    def made(self) -> Concept:
        """The concept."""
        return Concept(self.target, self.mapping, self.type, self.aliases, self.templates)


class MomentsRecord(Record):
    """How much a concept's moments sum over. others: those of further texts."""

    pairs: Count
    prompts: Counted
    others: tuple["MomentsRecord", ...] = ()


class LoraRecord(Record):
    """One concept of a set of erasure LoRAs; see `ErasureLora`."""

    concept: ConceptRecord
    prompts: tuple[str, ...]
    projections: Annotated[tuple[str, ...], Field(min_length=1)]
    settings: dict[str, str | int | float | bool]
    refined_on: str
    moments: MomentsRecord | None


class ShardRecord(Record):
    """One concept of a shard's moments."""

    concept: ConceptRecord
    moments: MomentsRecord


class BaseRecord(_Whole):
    """The model's family; see `Base`."""

    architecture: str
    version: str
    resolution: str
    v2: bool = False
    prediction: str = "epsilon"

    def made(self) -> Base:
        """The family."""
        return Base(**dict(self))


class WeightsRecord(_Whole):
    """The weights of Eq. 19; see `RefineWeights`."""

    lambda1: Weight = 0.0
    lambda3: Weight = 0.0
    mu: Weight = 0.0
    metric: Literal[METRICS] = METRICS[0]

    def made(self) -> RefineWeights:
        """The weights."""
        return RefineWeights(**dict(self))


class RecipeRecord(Record):
    """A refinement; see `Recipe`."""

    weights: WeightsRecord
    strength: Annotated[float, Field(ge=0, le=1)]
    projections: Literal["both", "keys", "values"]
    settings: dict[str, str]
    clip_layer: Annotated[int, Field(ge=-1000, le=1000)] | None
    digest: str
    prior_source: str | None
    pooled: bool = False
    own_words: bool = False
    preset: Text = ""


class AdapterRecord(Record):
    """What peft's adapter_config says of a LoRA's scale. What is not there is peft's own default (`LoraConfig`)."""

    peft_type: str = "LORA"
    use_dora: bool | None = None
    use_rslora: bool | None = None
    bias: str | None = None
    r: Counted | None = None
    lora_alpha: Annotated[float, Field(allow_inf_nan=False)] | None = None
    rank_pattern: dict[str, Counted] | None = None
    alpha_pattern: dict[str, Annotated[float, Field(allow_inf_nan=False)]] | None = None


_STRICT = ConfigDict(strict=True)
LORAS = TypeAdapter(Annotated[tuple[LoraRecord, ...], Field(min_length=1)], config=_STRICT)
SHARD = TypeAdapter(Annotated[tuple[ShardRecord, ...], Field(min_length=1)], config=_STRICT)
BASE_RECORD = TypeAdapter(BaseRecord | None)
RECIPE = TypeAdapter(RecipeRecord | None)
# num_res_blocks of a UNet, one a level.
BLOCKS = TypeAdapter(
    Annotated[tuple[Annotated[int, Field(ge=1, le=1000)], ...], Field(min_length=1, max_length=100)], config=_STRICT
)
SETTINGS = TypeAdapter(dict[str, Any])
COUNT = TypeAdapter(Count, config=_STRICT)
NAMES = TypeAdapter(tuple[str, ...], config=_STRICT)
SOME_NAMES = TypeAdapter(Annotated[tuple[str, ...], Field(min_length=1)], config=_STRICT)
# How many captions and which phrases were taken out of a prior.
STEPPED_ASIDE = TypeAdapter(tuple[Count, tuple[str, ...]], config=_STRICT)
# A prior's captions, and the prompts of each concept to preserve.
TEXTS = TypeAdapter(tuple[tuple[str, ...], tuple[tuple[str, ...], ...]], config=_STRICT)


def dumps(value) -> str:
    """A value as `read_record` reads it."""
    return json.dumps(value, ensure_ascii=False)


def read_record(kind: type[Record] | TypeAdapter, text: str | bytes, name: str) -> Any:
    """A record of JSON. name: what the text is, for errors. Raises RecordError."""
    validate = kind.validate_json if isinstance(kind, TypeAdapter) else kind.model_validate_json
    try:
        return validate(text)
    except ValidationError as error:
        raise RecordError(_told(error.errors(include_url=False)[0], name)) from None


def read_adapter(text: str, name: str, prefix: str = "") -> dict[str, Any]:
    """What an adapter_config says of scales, as `AdapterRecord`; {} where nothing has the prefix.

    prefix: of the names of its settings, which are all that is read. Raises RecordError.
    """
    settings = read_record(SETTINGS, text, name)
    own = {key.removeprefix(prefix): value for key, value in settings.items() if key.startswith(prefix)}
    return read_record(AdapterRecord, json.dumps(own), name).model_dump(exclude_unset=True)


def _told(error: dict, name: str) -> str:
    """One of the validator's errors in words: the place, what stands there, what should."""
    place = name + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error["loc"])
    if error["type"] == "missing":
        return f"{place} is missing"
    if error["type"] in ("json_invalid", "string_unicode"):
        return f"{name} is no JSON that can be read ({error['msg'].removeprefix('Invalid JSON: ')})"
    shown = repr(error["input"])
    shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
    expected = error["msg"].removeprefix("Value error, ").replace("Input should be", "it should be")
    return f"{place} is {shown}: {expected[:1].lower()}{expected[1:]}"
