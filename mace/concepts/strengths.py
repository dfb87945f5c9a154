"""A strength for each concept, as an artist writes them: `dog = 0.5`, one a line."""

import re
from collections.abc import Sequence

from .concept import Concept, ConceptError
from .named import check_comments, strangers, values_by_name, values_of
from .notation import Line

# Other ways to write a name and a number, looked for in lines of some length.
_ALIKE = re.compile(r"(.+?)\s*(?:[:,=]|[-=]+>|\s)\s*([\d.,]+)\s*(%?)")
_LONGEST = 200


def _strength(line: Line) -> tuple[str, float]:
    name, equals, value = line.text.rpartition("=")
    # A comma between digits is the decimal point of many languages.
    strength = _number(value.replace(",", "."))
    if not equals or not name.strip() or not 0.0 <= strength <= 1.0:
        alike = _ALIKE.fullmatch(line.raw) if len(line.raw) <= _LONGEST else None
        meant = _number(alike[2].replace(",", ".")) / (100 if alike[3] else 1) if alike else -1.0
        said = f"{alike[1]} = {meant:g}" if 0.0 <= meant <= 1.0 else "dog = 0.5"
        raise ConceptError(f"{line.raw!r} is not a concept and a strength from 0 to 1, as in: {said}")
    return name, strength


def _number(text: str) -> float:
    """A number, below 0 where it is none."""
    try:
        return float(text)
    except ValueError:
        return -1.0


def parse_strengths(text: str) -> dict[str, float]:
    """Strengths 0..1 by normalised target. A line `* = 0.8` is for all that have none of their own.

    Raises TextError, naming the line, for one that is not `concept = number`, a number outside 0..1, and a concept
    named twice. Blank lines and text after # are passed over.
    """
    return values_by_name(text, _strength, "strengths", "strength")


def strengths_of(text: str, concepts: Sequence[Concept]) -> list[float]:
    """The strength of each concept, 1 where nothing is said. Raises TextError for a bad line.

    A list changes under strengths that were written for it: those of no concept are passed over, see `strange_lines`.
    """
    check_comments(text, concepts, "strengths")
    return values_of(parse_strengths(text), concepts, lambda concept: 1.0)


def strange_lines(text: str, concepts: Sequence[Concept]) -> list[str]:
    """What of strengths names no concept, for the artist. Raises TextError for a bad line."""
    names = strangers(parse_strengths(text), concepts)
    return [f"strengths names what is not in the list, and is passed over: {', '.join(names)}"] if names else []


def with_strength(concepts: Sequence[Concept], strengths: Sequence[float] | None) -> tuple[Concept, ...]:
    """Those of the concepts that are erased at all. strengths: one a concept, None where all have some."""
    own = [1.0] * len(concepts) if strengths is None else strengths
    return tuple(concept for concept, strength in zip(concepts, own, strict=True) if strength)
