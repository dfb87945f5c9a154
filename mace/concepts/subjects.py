"""What an evaluation asks for: erased concepts, their aliases and synonyms, and what is to stay."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .concept import Concept
from .notation import phrase_of, read_lines
from .pasted import offer
from .templates import read_templates
from .text import TextError, normalised

ERASED, ALIAS, SYNONYM, KEPT = "erased", "alias", "synonym", "kept"


@dataclass(frozen=True)
class Subject:
    """One phrase that pictures are asked for by.

    phrase: as it stands in the prompts.  label: what the judge is to see: the concept's target, for its aliases and
    synonyms too.  group: ERASED, ALIAS (named when the concept was erased), SYNONYM (not named) or KEPT.
    """

    phrase: str
    label: str
    group: str


def parse_names(text: str, field: str) -> list[str]:
    """Names, one a line or separated by commas (see `notation`). Each once, in order.

    field: the input that holds the text. Raises TextError, naming field and line, for what is no name.
    """
    lines = read_lines(text, field)
    offered = offer(lines, text, mapped=False)
    if offered:
        raise TextError(f"{field}: {offered}")
    found: dict[str, str] = {}
    for line in lines:
        for name in _names(line.text, f"{field}: line {line.number}"):
            found.setdefault(normalised(name), name)
    return list(found.values())


def _names(text: str, place: str) -> list[str]:
    """The names between commas, each once."""
    found: dict[str, str] = {}
    try:
        for name in filter(None, map(phrase_of, text.split(","))):
            found.setdefault(normalised(name), name)
    except TextError as error:
        raise TextError(f"{place}: {error}") from None
    return list(found.values())


def parse_templates(text: str) -> list[str]:
    """Prompt templates, one a line, each with {} for the phrase. Raises ValueError for a line without, or for none."""
    found = read_templates(text, "prompts")
    if not found:
        raise TextError("prompts: there is no prompt template: write one such as: a photo of the {}")
    return list(found)


def parse_synonyms(text: str) -> dict[str, list[str]]:
    """Synonyms by target, from lines `target | synonym, synonym` or `target: synonym, synonym`.

    Raises ValueError for a line that cannot be read.
    """
    return _names_by_target(text, "synonyms", ("a synonym", "synonyms"), least=1)


def parse_chosen(text: str) -> dict[str, list[str]]:
    """Aliases that an artist chose, by target, from lines `target | alias, alias`; a target alone has none.

    Raises ValueError for a line that cannot be read.
    """
    return _names_by_target(text, "chosen", ("an alias", "aliases"), least=0)


def _names_by_target(text: str, field: str, called: tuple[str, str], least: int) -> dict[str, list[str]]:
    """field: the input that holds the text.  called: one name, and several.  least: how many a target has."""
    one, several = called
    found: dict[str, list[str]] = {}
    for line in read_lines(text, field):
        place = f"{field}: line {line.number}"
        left, sign, rest = line.text.partition("|" if "|" in line.text else ":")
        try:
            target = phrase_of(left)
        except TextError as error:
            raise TextError(f"{place}: {error}") from None
        names = _names(rest, place)
        if not target or len(names) < least:
            raise TextError(f"{place}: {line.raw!r} is not a concept and its {several}; write: dog | canine, hound")
        if ":" in rest or "|" in rest:
            raise TextError(f"{place}: {one} holds a colon or a bar; write: dog | canine, hound")
        if normalised(target) in map(normalised, found):
            raise TextError(f"{place}: {target!r} has {several} already; write them in one line")
        found[target] = names
    return found


def subjects(concepts: Sequence[Concept], synonyms: str, keep: str) -> tuple[Subject, ...]:
    """All phrases of an evaluation: each erased concept with its aliases and synonyms, then what is to stay.

    A synonym that is an alias counts as the alias it is, since it was named. Raises ValueError for synonyms of a
    concept that is not in the list, for a phrase that is kept and erased, and for one that stands twice.
    """
    given = {normalised(target): (target, names) for target, names in parse_synonyms(synonyms).items()}
    unknown = [target for key, (target, _) in given.items() if key not in {normalised(c.target) for c in concepts}]
    if unknown:
        raise ValueError(
            f"synonyms: {unknown[0]!r} is not among the erased concepts; write their targets before the colon"
        )
    asked = [subject for concept in concepts for subject in _of_concept(concept, given)]
    asked += [Subject(name, name, KEPT) for name in parse_names(keep, "keep")]
    seen: dict[str, Subject] = {}
    for subject in asked:
        other = seen.setdefault(normalised(subject.phrase), subject)
        if other is not subject:
            raise ValueError(
                f"{subject.phrase!r} is {_place(subject)} and {_place(other)}: remove one of them, since one picture "
                "cannot count for both"
            )
    return tuple(asked)


def _of_concept(concept: Concept, given: dict) -> Iterable[Subject]:
    yield Subject(concept.target, concept.target, ERASED)
    yield from (Subject(alias, concept.target, ALIAS) for alias in concept.aliases)
    aliases = set(map(normalised, concept.aliases))
    _, names = given.get(normalised(concept.target), (None, ()))
    yield from (Subject(name, concept.target, SYNONYM) for name in names if normalised(name) not in aliases)


def _place(subject: Subject) -> str:
    return "to be kept" if subject.group == KEPT else f"{subject.group} ({subject.label})"
