"""A strength for each concept, as an artist writes them: `dog = 0.5`, one a line."""

from collections.abc import Sequence

from .concept import Concept, ConceptError
from .named import values_by_name, values_of


def _strength(line: str) -> tuple[str, float]:
    name, equals, value = line.rpartition("=")
    try:
        strength = float(value)
    except ValueError:
        strength = -1.0
    if not equals or not name.strip() or not 0.0 <= strength <= 1.0:
        raise ConceptError(f"{line!r} is not a concept and a strength from 0 to 1, as in: dog = 0.5")
    return name, strength


def parse_strengths(text: str) -> dict[str, float]:
    """Strengths 0..1 by normalised target. A line `* = 0.8` is for all that have none of their own.

    Raises ConceptError, naming the line, for one that is not `concept = number`, a number outside 0..1, and a concept
    named twice. Blank lines and text after # are passed over.
    """
    return values_by_name(text, _strength, "strengths", "strength")


def strengths_of(text: str, concepts: Sequence[Concept]) -> list[float]:
    """The strength of each concept, 1 where nothing is said.

    Raises ConceptError for a bad line and for a name that no concept has.
    """
    return values_of(parse_strengths(text), concepts, lambda concept: 1.0, "strengths")
