"""Lines that give something to concepts by name, one a line; `*` stands for all that have no line of their own."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from .concept import Concept, ConceptError
from .notation import Line, passed_over, phrase_of, read_lines
from .text import TextError, normalised

ALL = "*"
Value = TypeVar("Value")


def values_by_name(text: str, read: Callable[[Line], tuple[str, Value]], field: str, noun: str) -> dict[str, Value]:
    """Values by normalised name. Blank lines and text after # are passed over.

    read: (name, value) of a line, the name as it stands in the line's text, or TextError saying what the line should
    be like.  field: the input that holds the lines.  noun: what is given. Raises TextError, naming field and line,
    also for a concept named twice.
    """
    found: dict[str, Value] = {}
    for line in read_lines(text, field):
        try:
            part, value = read(line)
            name = phrase_of(part)
            if normalised(name) in found:
                raise ConceptError(f"{name!r} has a {noun} already; remove one of the lines")
        except TextError as error:
            raise ConceptError(f"{field}: line {line.number}: {error}") from None
        found[normalised(name)] = value
    return found


def values_of(
    given: Mapping[str, Value], concepts: Sequence[Concept], usual: Callable[[Concept], Value]
) -> list[Value]:
    """What each concept is given by its target, else by `*`, else `usual`. Names of no concept are passed over."""
    return [given.get(normalised(c.target), given.get(ALL, usual(c))) for c in concepts]


def strangers(given: Iterable[str], concepts: Sequence[Concept]) -> list[str]:
    """Those of the names, as `values_by_name` has them, that no concept has."""
    targets = {normalised(concept.target) for concept in concepts}
    return [name for name in given if name not in targets and name != ALL]


def check_names(given: Iterable[str], concepts: Sequence[Concept], field: str) -> None:
    """Raise ConceptError for a name that no concept has. field: the input that holds the lines."""
    unknown = strangers(given, concepts)
    if unknown:
        known = ", ".join(concept.target for concept in concepts[:8]) + (" ..." if len(concepts) > 8 else "")
        raise ConceptError(f"{field}: there is no concept {unknown[0]!r} in the list ({known})")


def check_comments(text: str, concepts: Sequence[Concept], field: str) -> None:
    """Raise ConceptError for lines that are comments by their #, where a concept's name begins with it."""
    passed = passed_over(text)
    if passed and any(concept.target.startswith("#") for concept in concepts):
        raise ConceptError(f"{field}: {passed[0]}")
