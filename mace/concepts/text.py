"""Text as it is compared everywhere, and what no text may hold.

CLIP's tokenizer composes letters (NFC), takes any white space for one space and lowers letters one by one; phrases that
it cannot tell apart are one phrase here too. web/notation.js does the same on the page.
"""

import re
import unicodedata

from ..messages import MessageError

# What is not seen and says nothing: byte order marks, zero-width spaces, soft hyphens, marks of direction. The joiners
# U+200C and U+200D stay, for scripts and emoji are written with them.
_INVISIBLE = re.compile("[\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]")
# Surrogates, private use, and control characters that are no white space.
_UNREADABLE = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ud800-\udfff\ue000-\uf8ff\U000f0000-\U000ffffd\U00100000-\U0010fffd]"
)


class TextError(MessageError):
    """A text with a character that no tokenizer can be given; the message names field, line and character."""


def composed(text: str) -> str:
    """A text as it is kept: letters composed, what is not seen left out, white space collapsed."""
    return " ".join(_INVISIBLE.sub("", unicodedata.normalize("NFC", text)).split())


def normalised(phrase: str) -> str:
    """A phrase as it is compared: `composed`, in small letters, as CLIP's tokenizer makes them.

    Letter by letter, which is not what str.lower makes of a Greek sigma at the end of a word. Giving it what it gave
    changes nothing.
    """
    if phrase.isascii():
        return " ".join(phrase.lower().split())
    return unicodedata.normalize("NFC", "".join(letter.lower() for letter in composed(phrase)))


def check_characters(text: str, field: str) -> None:
    """Raise TextError for a character that is no text: half of a surrogate pair, private use, control characters.

    field: the input (or file) that holds the text.
    """
    found = _UNREADABLE.search(text)
    if found is None:
        return
    code = ord(found[0])
    kind = "a control character" if code < 0xA0 else "half of a character" if code < 0xE000 else "of private use"
    before = (text[: found.start()] + "x").splitlines()
    near = repr(before[-1][-20:-1] + text[found.start() :].splitlines()[0][:20])
    raise TextError(f"{field}: line {len(before)}: {near} holds U+{code:04X}, {kind}, which is no text; take it out")
