"""What a detector is asked for: a phrase for each concept, as an artist writes it."""

from collections.abc import Sequence

from .concept import Concept, ConceptError
from .named import ALL, check_comments, check_names, values_by_name, values_of
from .notation import Line, phrase_of

# Detectors know kinds of things, and few names of people.
KINDS = {"celebrity": "face", "explicit": "person"}


def _phrase(line: Line) -> tuple[str, str]:
    name, equals, phrase = line.text.partition("=")
    if not equals:
        name, phrase = ALL, line.text
    phrase = phrase_of(phrase)
    if not phrase.strip(" .,") or not name.strip():
        raise ConceptError(f"{line.raw!r} is not a phrase, nor as in: Tom Cruise = man")
    return name, phrase


def parse_phrases(text: str) -> dict[str, str]:
    """Phrases by normalised target: lines `concept = phrase`; a line `face` or `* = face` is for all without their own.

    Raises TextError, naming the line, for an empty phrase and a concept named twice. Blank lines and text after #
    are passed over.
    """
    return values_by_name(text, _phrase, "phrase", "phrase")


def phrases_of(text: str, concepts: Sequence[Concept]) -> list[str]:
    """What to look for of each concept, where nothing is said: a kind of thing for people, else its own words.

    Raises TextError for a bad line and for a name that no concept has.
    """
    check_comments(text, concepts, "phrase")
    given = parse_phrases(text)
    check_names(given, concepts, "phrase")
    return values_of(given, concepts, lambda concept: KINDS.get(concept.type, concept.target))


def caption_of(phrase: str) -> str:
    """A phrase as GroundingDINO was trained on it: lower case, every thing to find ended by a full stop.

    Several things are parted by full stops or commas: "cat, dog" becomes "cat. dog.".
    """
    parts = [" ".join(part.split()) for part in phrase.lower().replace(",", ".").split(".")]
    return " ".join(f"{part}." for part in parts if part)
