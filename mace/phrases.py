"""What a detector is asked for: a phrase for each concept, as an artist writes it."""

from collections.abc import Sequence

from .concept import Concept, ConceptError, normalised, uncommented

ALL = "*"


def parse_phrases(text: str) -> dict[str, str]:
    """Phrases by normalised target: lines `concept = phrase`; a line `face` or `* = face` is for all without their own.

    Raises ConceptError, naming the line, for an empty phrase and a concept named twice. Blank lines and text after #
    are passed over.
    """
    found: dict[str, str] = {}
    for number, raw in enumerate(text.splitlines(), start=1):
        line = uncommented(raw)
        if not line:
            continue
        name, equals, phrase = line.partition("=")
        if not equals:
            name, phrase = ALL, line
        phrase = " ".join(phrase.split())
        if not phrase.strip(" .,") or not name.strip():
            raise ConceptError(f"phrase: line {number}: {line!r} is not a phrase, nor as in: Tom Cruise = face")
        key = normalised(name)
        if key in found:
            raise ConceptError(f"phrase: line {number}: {name.strip()!r} has a phrase already; remove one of the lines")
        found[key] = phrase
    return found


def phrases_of(text: str, concepts: Sequence[Concept]) -> list[str]:
    """What to look for of each concept: its own words where nothing is said.

    Raises ConceptError for a bad line and for a name that no concept has.
    """
    given = parse_phrases(text)
    usual = given.pop(ALL, None)
    targets = {normalised(concept.target) for concept in concepts}
    unknown = [name for name in given if name not in targets]
    if unknown:
        known = ", ".join(concept.target for concept in concepts[:8]) + (" ..." if len(concepts) > 8 else "")
        raise ConceptError(f"phrase: there is no concept {unknown[0]!r} in the list ({known})")
    return [given.get(normalised(concept.target), usual or concept.target) for concept in concepts]


def caption_of(phrase: str) -> str:
    """A phrase as GroundingDINO was trained on it: lower case, every thing to find ended by a full stop.

    Several things are parted by full stops or commas: "cat, dog" becomes "cat. dog.".
    """
    parts = [" ".join(part.split()) for part in phrase.lower().replace(",", ".").split(".")]
    return " ".join(f"{part}." for part in parts if part)
