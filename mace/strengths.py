"""A strength for each concept, as an artist writes them: `dog = 0.5`, one a line."""

from collections.abc import Sequence

from .concept import Concept, ConceptError, normalised, uncommented

ALL = "*"


def parse_strengths(text: str) -> dict[str, float]:
    """Strengths 0..1 by normalised target. A line `* = 0.8` is for all that have none of their own.

    Raises ConceptError, naming the line, for one that is not `concept = number`, a number outside 0..1, and a concept
    named twice. Blank lines and text after # are passed over.
    """
    found: dict[str, float] = {}
    for number, raw in enumerate(text.splitlines(), start=1):
        line = uncommented(raw)
        if not line:
            continue
        name, equals, value = line.rpartition("=")
        try:
            strength = float(value)
        except ValueError:
            strength = -1.0
        if not equals or not name.strip() or not 0.0 <= strength <= 1.0:
            raise ConceptError(f"line {number}: {line!r} is not a concept and a strength from 0 to 1, as in: dog = 0.5")
        key = normalised(name)
        if key in found:
            raise ConceptError(f"line {number}: {name.strip()!r} has a strength already; remove one of the lines")
        found[key] = strength
    return found


def strengths_of(text: str, concepts: Sequence[Concept]) -> list[float]:
    """The strength of each concept, 1 where nothing is said.

    Raises ConceptError for a bad line and for a name that no concept has.
    """
    given = parse_strengths(text)
    usual = given.pop(ALL, 1.0)
    targets = {normalised(concept.target) for concept in concepts}
    unknown = [name for name in given if name not in targets]
    if unknown:
        known = ", ".join(concept.target for concept in concepts[:8]) + (" ..." if len(concepts) > 8 else "")
        raise ConceptError(f"strengths: there is no concept {unknown[0]!r} in the list ({known})")
    return [given.get(normalised(concept.target), usual) for concept in concepts]
