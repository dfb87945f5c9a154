"""The one notation of all lists: `target | alias, alias -> mapping`, `name = value`, names with commas between. A line
of concepts may begin with its own type: `[style] Van Gogh -> art`.

A phrase in double quotes is what stands in them, whatever that is: `"a, b"`, `"#metoo"`, `"say \\"hello\\""`. Text
after ` #` is a comment. What can only mean one of the signs is read as it (other arrows, full-width bars and commas,
bullets, commas at the end of a line); what is left of other notations is refused with what to write.
"""

import re
from dataclasses import dataclass

from .text import TextError, check_characters, composed

ARROW = "->"
_ARROWS = "\u2192\u21d2\u21a6\u27f6\u27f9\u279c\u2794\u279d\u27a1"
_ANY_ARROW = re.compile(rf"(?:[-=\u2010-\u2015\u2212\uff0d\uff1d]{{1,20}}\s?(?:[>\uff1e]|&gt;)|[{_ARROWS}])\ufe0f?")
# Signs that look like the notation's own, and those.
_ALIKE = str.maketrans("\uff5c\u2223\u2502\uff0c\u3001\uff64\uff1a\uff1d\uff1b\uff1e\uff1c", "|||,,,:=;><")
_TYPE = re.compile(r"^\[([A-Za-z]+)\]\s*(?=\S)")
_BULLET = re.compile(r"^(?:[-\u2010-\u2015\u2022\u2023\u25cf\u00b7]\s+)+")
_COMMENT = re.compile(r"(^|\s)#.*$")
_HASHTAG = re.compile(r"(?:^|\s)#[^\s#]")
_QUOTED = re.compile(
    rf'((?:^|[|,:;=>\uff5c\uff0c\u3001\uff1a\uff1d\uff1e{_ARROWS}])\s*(?:[-*\u2022]\s+)?(?:\[[A-Za-z]+\]\s*)?)"((?:[^"\\]|\\.)*)"'
    rf"(?=\s*(?:$|#|[|,:;=\uff5c\uff0c\u3001\uff1a\uff1d\uff1b]|{_ANY_ARROW.pattern}))"
)
_ESCAPED = re.compile(r'\\(["\\])')
_OTHER_QUOTES = "'' `` \u2018\u2019 \u201c\u201d \u201e\u201c \u201e\u201d \u00ab\u00bb \u2039\u203a".split()
# Of a phrase that has to stand in quotes to be read back.
_SPECIAL = re.compile(
    rf"""["`|,:;=#<>\\\[\]*{_ARROWS}\u2010-\u2015\u2018-\u201e\u2022\u2023\u25cf\u00ab\u00b7\u00bb\u2039\u203a\u2212\u2223\u2502\u3000-\u303f\uff00-\uffef]"""
)
# Inside quotes every sign stands this far on, among characters that no text may hold, until the line is parted.
_AWAY = 0xF0000


@dataclass(frozen=True)
class Line:
    """A line that says something. number: from 1.  raw: as it was written, without the comment.  text: ready to be
    parted at the notation's signs; its parts are read by `phrase_of`."""

    number: int
    raw: str
    text: str


def read_lines(text: str, field: str) -> list[Line]:
    """The lines of a text that are not empty and not comments alone.

    field: the input that holds the text. Raises TextError for characters that are no text.
    """
    check_characters(text, field)
    found = []
    for number, typed in enumerate(text.splitlines(), start=1):
        raw = composed(typed)
        comment = _COMMENT.search(_QUOTED.sub(lambda match: match[1] + "x" * (len(match[0]) - len(match[1])), raw))
        raw = raw[: comment.start()].strip() if comment else raw
        line = _BULLET.sub("", _sealed(raw).translate(_ALIKE)).rstrip(",; ")
        if line:
            found.append(Line(number, raw, line))
    return found


def uncommented(raw: str) -> str:
    """A line without the comment after ` #`, composed."""
    return _COMMENT.sub("", composed(raw)).strip()


def passed_over(text: str) -> list[str]:
    """What a text holds that was taken for a comment and may be a phrase, `#metoo`: one sentence a line."""
    return [
        f"line {number}: {composed(raw)!r}: what follows # is a comment; a phrase that begins with # stands in quotes"
        for number, raw in enumerate(text.splitlines(), start=1)
        if _HASHTAG.search(_sealed(composed(raw)))
    ]


def type_of(text: str) -> tuple[str, str]:
    """(type, rest) of a ready line, which may begin with a word in brackets, `[style] Van Gogh`; "" for no type."""
    found = _TYPE.match(text)
    return (found[1].lower(), text[found.end() :]) if found else ("", text)


def sides_of(text: str) -> list[str]:
    """The parts of a line between its arrows."""
    return _ANY_ARROW.split(text)


def phrase_of(part: str) -> str:
    """The phrase that a part of a line is. Raises TextError for what is left of another notation."""
    part = _bare(part)
    phrase = _unsealed(part)
    if "{" in phrase or "}" in phrase:
        raise TextError("braces are kept for prompt templates; write the phrase without them")
    if part.startswith('"') and part.count('"') == 1:
        raise TextError(f'a quote is not closed; write "{part[1:]}", or leave it out')
    # A word in angle brackets is a name of a textual inversion elsewhere.
    bare = re.sub(r"<[^<>\s]*>", "", part)
    if ">" in bare or "<-" in bare or bare.endswith("<"):
        left, _, right = re.sub(r"[-=<>~|:]+", ">", part).partition(">")
        order = (right, left) if "<-" in bare else (left, right)
        said = " -> ".join(side.strip(" >") or "..." for side in order)
        raise TextError(f"{phrase!r} is no phrase; if it is a mapping, write: {said}. {_IN_QUOTES}")
    if ";" in part:
        raise TextError(
            f"a line holds one concept, and there is a ';' in it; write each in its own line: {_each(part, ';')}"
        )
    if part.startswith(("[", "]")) or part.endswith("]") and "[" not in part:
        raise TextError(f"{phrase!r} is a bit of another program's list; write the phrase alone. {_IN_QUOTES}")
    return phrase


def comma_in(name: str) -> str:
    """What a comma in a concept's name does, for the artist; "" where there is none outside quotes."""
    bare = _bare(name)
    if "," not in bare or bare != name.strip():
        return ""
    return (
        f"{_unsealed(bare)!r} is read as one concept with a comma in its name; if several are meant, write each in its "
        f"own line: {_each(bare, ',')}; if it is one, put it in double quotes"
    )


def _bare(part: str) -> str:
    """A part without space and other quotes around it."""
    part = part.strip()
    for first, last in _OTHER_QUOTES:
        inside = part[1:-1]
        if len(part) > 2 and part[0] == first and part[-1] == last and not {first, last} & set(inside):
            return inside.strip()
    return part


def _each(part: str, sign: str) -> str:
    """The names of a part, as lines hold them."""
    return ", then ".join(written(_unsealed(name.strip())) for name in part.split(sign) if name.strip())


_IN_QUOTES = 'What stands in "double quotes" is taken as it is'


def written(phrase: str) -> str:
    """A phrase as a line holds it, in quotes where it needs them; `read_lines` and `phrase_of` give it back."""
    if not _SPECIAL.search(phrase) and not _BULLET.match(phrase) and "->" not in phrase and phrase[:1] not in "'-(":
        return phrase
    return '"' + re.sub(r'(["\\])', r"\\\1", phrase) + '"'


def _sealed(line: str) -> str:
    return _QUOTED.sub(lambda match: match[1] + _shifted(_ESCAPED.sub(r"\1", match[2])), line)


def _shifted(text: str) -> str:
    return "".join(c if c.isalnum() or c == " " or ord(c) > 0xFFFF else chr(ord(c) + _AWAY) for c in text)


def _unsealed(text: str) -> str:
    return "".join(chr(ord(c) - _AWAY) if _AWAY <= ord(c) < _AWAY + 0x10000 else c for c in text)
