"""Prompt templates: the sentences a concept is read in, by type, and an artist's own."""

import json
import re
from pathlib import Path

from ..messages import MessageError

_COMMENT = re.compile(r"(^|\s)#.*$")


class TemplateError(MessageError):
    """A prompt that cannot serve as a template; the message names its line."""


def _load() -> dict[str, tuple[str, ...]]:
    file = Path(__file__).parent / "data" / "templates.json"
    return {kind: tuple(lines) for kind, lines in json.loads(file.read_text(encoding="utf-8")).items()}


# By type of concept; each holds one {} for the phrase, and reads well with target and mapping alike. The
# paper had GPT-4 write such prompts (Section 4.1). The phrase stands at the start, in the middle and at the
# end, for the tokens after it are those that Eq. 1 maps: words and end-of-text are so met at many positions.
# The prompts the paper measures with are kept out: measuring on what was edited would flatter the result.
TEMPLATES: dict[str, tuple[str, ...]] = _load()


def read_templates(text: str) -> tuple[str, ...]:
    """An artist's own prompts, one a line, each with {} where the phrase goes; each is taken once.

    Blank lines are passed over, text after ` #` is a comment. Raises TemplateError for a line without {} and
    for other braces. An empty text gives no templates.
    """
    found: list[str] = []
    for number, raw in enumerate(text.removeprefix("\ufeff").splitlines(), start=1):
        line = " ".join(_COMMENT.sub("", raw).split())
        if not line:
            continue
        rest = line.replace("{}", "")
        if "{" in rest or "}" in rest:
            raise TemplateError(f"line {number}: {line!r} has other braces; write only {{}} where the phrase goes")
        if rest == line:
            raise TemplateError(f"line {number}: {line!r} has no {{}}; write {{}} where the phrase goes")
        found.append(line)
    return tuple(dict.fromkeys(found))
