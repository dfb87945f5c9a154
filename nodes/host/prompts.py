"""Whole prompts given to the host's tokenizers, checked for what the host passes over or fails at."""

import math
import re

from comfy.sd1_clip import escape_important, token_weights, unescape_important

from ...mace.concepts.text import check_characters
from ...mace.method.tokens import PairingError

# Where the host begins to read a textual inversion's name.
_EMBEDDING = "embedding:"
_NAMED = re.compile(r"(?:^|(?<=\s))embedding:(\S*)")


def parts_of(prompt: str) -> list[tuple[str, float]]:
    """The texts of a prompt's weighted parts and their weights, as the host's prompt language divides it."""
    return [(unescape_important(text), weight) for text, weight in token_weights(escape_important(prompt), 1.0)]


def check_prompt(clip, prompt: str, field: str = "prompt") -> None:
    """Raise TextError for characters that are no text, PairingError for a textual inversion that is not there.

    The host leaves such an inversion out with a line in its log.  field: the input that holds the prompt.
    """
    check_characters(prompt, field)
    if _EMBEDDING in prompt:
        _check_embeddings(clip, prompt, field)


def tokens_of(clip, prompt: str, field: str = "prompt") -> dict[str, list]:
    """The host's tokens of a whole prompt, by tokenizer.

    Raises what `check_prompt` does, and PairingError for a weight that is no finite number.
    """
    check_prompt(clip, prompt, field)
    sections = clip.tokenize(prompt)
    weights = {token[1] for batches in sections.values() for batch in batches for token in batch}
    if not all(map(math.isfinite, weights)):
        text, weight = next(part for part in parts_of(prompt) if not math.isfinite(part[1]))
        raise PairingError(f"{field}: {prompt!r} gives {text!r} the weight {weight}; write a number, such as 1.1")
    return sections


def _check_embeddings(clip, prompt: str, field: str) -> None:
    for tokenizer in (own for own in vars(clip.tokenizer).values() if hasattr(own, "_try_get_embedding")):
        if tokenizer.embedding_directory is None:
            continue
        for name in (match[1] for text, _ in parts_of(prompt) for match in _NAMED.finditer(text)):
            if not name or tokenizer._try_get_embedding(name)[0] is None:
                raise PairingError(
                    f"{field}: {prompt!r} names the textual inversion {name!r}, which is not among models/embeddings; "
                    "put it there, or correct its name"
                )
