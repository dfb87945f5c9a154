"""A preset as the text of its file, of the numbers that an artist found."""

import json
from collections.abc import Mapping, Sequence

from ..concepts.concept import TYPES
from ..concepts.named import values_by_name
from ..concepts.notation import Line
from ..concepts.text import TextError
from ..method.fuse import TO_REFINED
from ..method.refine import ALIKE
from .presets import EVERY_TYPE, PresetError, preset_of_text

LORA_LINE = "object = 1, 50, 1e-5"


def lora_rows(text: str, field: str = "lora") -> dict[str, dict] | None:
    """How LoRAs are trained by type, one a line: `style = rank, steps, learning rate`, `*` for all other types.

    None for an empty text. Raises TextError, naming field and line.
    """
    rows = values_by_name(text, _row, field, "row")
    if not rows:
        return None
    if EVERY_TYPE not in rows:
        raise TextError(f"{field}: there is no row for all other types: add one such as {EVERY_TYPE} = 1, 50, 1e-5")
    return rows


def _row(line: Line) -> tuple[str, dict]:
    name, equals, value = line.text.rpartition("=")
    kind, numbers = name.strip(), [part.strip() for part in value.split(",")]
    if not equals or kind not in (*TYPES, EVERY_TYPE):
        known = ", ".join((*TYPES, EVERY_TYPE))
        raise TextError(f"{line.raw!r} does not begin with a type ({known}), as in: {LORA_LINE}")
    try:
        rank, steps, rate = int(numbers[0]), int(numbers[1]), float(numbers[2])
        if len(numbers) != 3:
            raise ValueError
    except (IndexError, ValueError):
        raise TextError(f"{line.raw!r} is not a type with rank, steps and learning rate, as in: {LORA_LINE}") from None
    return name, {"rank": rank, "steps": steps, "learning_rate": rate}


def weights_of_preset(given: Mapping[str, float | Sequence[float] | None], part: str) -> dict | None:
    """A part's weights by name, None where all are left to Table 10 (None each).

    A weight is a number, or (number, power, n) for one that grows with the list. Raises PresetError where some are
    given and others are not.
    """
    left = [name for name, value in given.items() if value is None]
    if len(left) == len(given):
        return None
    if left:
        raise PresetError(
            f"{part}: {left[0]} is auto beside numbers, and a preset holds all of {', '.join(given)} or none; write 0 "
            "for one that plays no part"
        )
    return dict(given)


def preset_text(name: str, found_on: str, settings: Mapping[str, object]) -> str:
    """The text of a preset's file: its name, what it was found on, and its settings.

    settings: as in the file (see `presets`); what is None is left out. Raises PresetError for a name or
    found_on that says nothing and for what no preset may hold.
    """
    name, found_on = " ".join(name.split()), " ".join(found_on.split())
    if not name or not found_on:
        raise PresetError(
            "name and found_on say what the preset is for: write both, such as my model and 1 object, 4000 captions"
        )
    entry = {"name": name, "found_on": found_on}
    entry |= {key: value for key, value in settings.items() if value is not None}
    text = json.dumps(entry, indent=2, ensure_ascii=False) + "\n"
    try:
        preset_of_text(text.encode(), name)
    except UnicodeEncodeError:
        raise PresetError("name or found_on holds half of a character, which no file can hold") from None
    return text


def refine_part(given: Mapping[str, float | Sequence[float] | None], metric: str) -> dict | None:
    """The weights of Eq. 19 with the metric of mu. Raises PresetError for a metric without weights."""
    weights = weights_of_preset(given, "refine")
    if metric == ALIKE:
        return weights
    if weights is None:
        raise PresetError(f"Table 10's weights measure in embeddings: write {', '.join(given)} as numbers too")
    return {**weights, "metric": metric}


def fuse_part(given: Mapping[str, float | Sequence[float] | None], pull: str) -> dict | None:
    """The weights of Eq. 7, whose names may begin with `fuse_`, with where they pull. Raises PresetError for another
    pull than the usual one without weights."""
    weights = weights_of_preset(given, "fusion")
    if weights is None and pull != TO_REFINED:
        raise PresetError(f"fusion: pull is chosen and the weights are auto: write {', '.join(given)} as numbers too")
    found = weights and {name.removeprefix("fuse_"): value for name, value in weights.items()}
    return found if pull == TO_REFINED else {**found, "pull": pull}
