"""Concepts to erase: a target phrase, what it is mapped to, its type, and other names it goes by."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .lists import mapping_for
from .notation import ARROW, Line, comma_in, phrase_of, read_lines, sides_of, type_of, written
from .pasted import offer
from .templates import TEMPLATES
from .text import TextError, normalised

TYPES = ("object", "celebrity", "style", "explicit")


class ConceptError(TextError):
    """A list of concepts that cannot be used; the message names the field, the line and what to change."""


@dataclass(frozen=True)
class Concept:
    """One concept to erase (or to preserve, where `mapping` plays no part).

    target: the phrase as it stands in prompts.  mapping: the phrase that takes its place in the mapping
    prompts (e^g of Eq. 1).  type: one of TYPES; it selects the prompts and the automatic settings.
    aliases: phrases erased together with the target.  templates: the artist's own prompts (each holds
    `{}`), used besides those of the type.
    """

    target: str
    mapping: str
    type: str
    aliases: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()

    @property
    def phrases(self) -> tuple[str, ...]:
        """The target and its aliases."""
        return (self.target, *self.aliases)

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompt templates of the concept: its type's, then the artist's own, each once."""
        return tuple(dict.fromkeys((*TEMPLATES[self.type], *self.templates)))

    @property
    def readings(self) -> tuple[tuple[str, str], ...]:
        """(template, phrase) of every prompt that the target and its aliases are read in."""
        return tuple((template, phrase) for phrase in self.phrases for template in self.prompts)


class ConceptList(tuple[Concept, ...]):
    """Concepts in order, and the preset whose settings they are erased with.

    preset: the name of one of mace.presets, "" where none was chosen, which is the paper's. It belongs to the list, for
    its concepts share one solve.
    """

    preset: str

    def __new__(cls, concepts: Iterable[Concept] = (), preset: str = ""):
        made = super().__new__(cls, concepts)
        made.preset = preset
        return made


def preset_of(concepts: Iterable[Concept]) -> str:
    """The preset that a list carries, "" for none."""
    return getattr(concepts, "preset", "")


def one_preset(names: Iterable[str]) -> str:
    """The one preset that was chosen among several lists' ("" where none was). Raises ConceptError for two."""
    chosen = list(dict.fromkeys(name for name in names if name))
    if len(chosen) > 1:
        raise ConceptError(
            f"one list is erased with one preset, and its parts have {chosen[0]!r} and {chosen[1]!r}: choose the same "
            "in both, or leave one at the paper's"
        )
    return chosen[0] if chosen else ""


def phrases_by_key(concepts: Iterable[Concept]) -> dict[str, str]:
    """Every target and alias as it was written, by its normalised form."""
    return {normalised(phrase): phrase for concept in concepts for phrase in concept.phrases}


def as_line(concept: Concept) -> str:
    """A concept as `parse_concepts` reads it under the concept's type."""
    aliases = f" | {', '.join(map(written, concept.aliases))}" if concept.aliases else ""
    return f"{written(concept.target)}{aliases} {ARROW} {written(concept.mapping)}"


def as_lines(concepts: Sequence[Concept]) -> str:
    """Concepts as `parse_concepts` reads them, one a line; each with its type where they have several."""
    mixed = len({concept.type for concept in concepts}) > 1
    return "\n".join(f"[{concept.type}] {as_line(concept)}" if mixed else as_line(concept) for concept in concepts)


def parse_concepts(
    text: str, type: str, templates: Sequence[str] = (), mapped: bool = True, field: str = "concepts"
) -> list[Concept]:
    """Read concepts, one a line: `target -> mapping` or `target | alias, alias -> mapping` (see `notation`).

    type: of the lines that have none of their own, `[style] target`; templates are for lines of this type alone. A line
    without a mapping takes the type's usual one. mapped=False reads concepts to preserve, which have no
    mapping.  field: the input that holds the text. Raises TextError for a line that cannot be read, for another
    program's list (with what it is in this notation) and for a phrase that stands in two lines. An empty text gives no
    concepts.
    """
    if type not in TYPES:
        raise ConceptError(f"unknown concept type {type!r}: use one of {', '.join(TYPES)}")
    lines = read_lines(text, field)
    offered = offer(lines, text, mapped)
    if offered:
        raise ConceptError(f"{field}: {offered}")
    found: list[Concept] = []
    numbers: dict[str, int] = {}
    for line in lines:
        try:
            concept = _parse_line(line, type, tuple(templates), mapped)
        except TextError as error:
            raise ConceptError(f"{field}: line {line.number}: {error}") from None
        for phrase in concept.phrases:
            key = normalised(phrase)
            if key in numbers:
                raise ConceptError(
                    f"{field}: line {line.number}: {phrase!r} already stands in line {numbers[key]}; remove one of them"
                )
            numbers[key] = line.number
        found.append(concept)
    return found


def _parse_line(line: Line, type: str, templates: tuple[str, ...], mapped: bool) -> Concept:
    own, said = type_of(line.text.removeprefix("* "))
    if own and own not in TYPES:
        raise ConceptError(
            f"[{own}] is no type; write one of {', '.join(f'[{kind}]' for kind in TYPES)}, or leave it out"
        )
    if own and own != type:
        type, templates = own, ()
    sides = sides_of(said)
    if len(sides) > 2:
        raise ConceptError("more than one '->'; write one concept a line as: target -> mapping")
    if len(sides) > 1 and not mapped:
        raise ConceptError("a concept to preserve has no mapping; leave '->' and what follows out")
    name, *aliases = sides[0].split("|")
    if len(aliases) > 1:
        raise ConceptError("more than one '|'; separate several aliases with commas: target | alias, alias")
    target = phrase_of(name)
    if not target:
        raise ConceptError("there is no target phrase; write: target -> mapping")
    others = [phrase_of(alias) for alias in aliases[0].split(",")] if aliases else []
    if not all(others):
        raise ConceptError("an alias is empty; write: target | alias, alias -> mapping")
    if len(sides) == 2:
        mapping = phrase_of(sides[1])
        if not mapping:
            raise ConceptError(f"nothing stands after '->'; name what {target!r} is to become, or leave it out")
    else:
        if " = " in name:
            left, _, right = line.raw.partition(" = ")
            raise ConceptError(
                f"'=' gives a strength in Fuse LoRAs; a mapping is written {left.strip()} -> {right.strip()}, and a "
                f'phrase with = in quotes: "{line.raw}"'
            )
        mapping = mapping_for(target, type) if mapped else ""
    phrases = [target, *others]
    for i, phrase in enumerate(phrases):
        if mapped and normalised(phrase) == normalised(mapping):
            raise ConceptError(
                f"{phrase!r} would be mapped to itself; give another mapping, such as: {phrase} -> a scene"
            )
        if normalised(phrase) in map(normalised, phrases[:i]):
            raise ConceptError(f"{phrase!r} is named twice")
    return Concept(target, mapping, type, tuple(others), templates)


def comma_lines(text: str, field: str = "concepts") -> list[str]:
    """What commas in the targets of lines of concepts do, for the artist: one sentence a line.

    field: the input that holds the text. Raises TextError for characters that are no text.
    """
    names = (
        (line.number, sides_of(type_of(line.text.removeprefix("* "))[1])[0].split("|")[0])
        for line in read_lines(text, field)
    )
    return [f"line {number}: {comma_in(name)}" for number, name in names if comma_in(name)]


def lines_error(text: str, field: str = "concepts") -> str | None:
    """What is wrong with lines of concepts under every type, or None.

    What is wrong under one type alone (a usual mapping equal to the phrase) depends on more than the lines.
    """
    errors = []
    for kind in TYPES:
        try:
            merge(parse_concepts(text, kind, field=field))
        except TextError as error:
            errors.append(str(error))
    return errors[0] if len(errors) == len(TYPES) else None


def merge(*lists: Iterable[Concept]) -> ConceptList:
    """Chain lists of concepts into one mixed list, with the preset that one of them carries.

    Raises ConceptError when a phrase (target or alias) belongs to two concepts, since its moments would count
    twice and its strength would be ambiguous, when a mapping names a phrase that is itself to be erased, and when two
    lists carry different presets.
    """
    preset = one_preset(map(preset_of, lists))
    merged: list[Concept] = []
    owners: dict[str, Concept] = {}
    for concept in (concept for part in lists for concept in part):
        for phrase in concept.phrases:
            owner = owners.setdefault(normalised(phrase), concept)
            if owner is not concept:
                raise ConceptError(
                    f"{phrase!r} is in the list twice: as {owner.target!r} ({owner.type}) and as "
                    f"{concept.target!r} ({concept.type}); remove one of them"
                )
        merged.append(concept)
    for concept in merged:
        words = f" {normalised(concept.mapping)} "
        named = next((phrase for phrase in owners if f" {phrase} " in words), None)
        if named is not None:
            raise ConceptError(
                f"{concept.target!r} is mapped to {concept.mapping!r}, which names {named!r}, itself to be erased; "
                "choose another mapping"
            )
    return ConceptList(merged, preset)
