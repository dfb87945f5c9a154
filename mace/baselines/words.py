"""A list of concepts as one prompt, as the safety concept of SLD and negative prompts take it."""

from collections.abc import Iterable

from ..concepts.concept import Concept


def joined(concepts: Iterable[Concept], text: str = "") -> str:
    """Every target and its aliases, then the text, with commas between."""
    phrases = [phrase for concept in concepts for phrase in concept.phrases]
    return ", ".join([*phrases, *filter(None, [" ".join(text.split())])])
