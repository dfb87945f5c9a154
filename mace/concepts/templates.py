"""Prompt templates: the sentences a concept is read in, by type, and an artist's own."""

import json
from pathlib import Path

from .notation import uncommented
from .text import TextError, check_characters, composed


class TemplateError(TextError):
    """A prompt that cannot serve as a template; the message names its line."""


def _load() -> dict[str, tuple[str, ...]]:
    file = Path(__file__).parent / "data" / "templates.json"
    return {kind: tuple(lines) for kind, lines in json.loads(file.read_text(encoding="utf-8")).items()}


# By type of concept; each holds one {} for the phrase, and reads well with target and mapping alike. The
# paper had GPT-4 write such prompts (Section 4.1). The phrase stands at the start, in the middle and at the
# end, for the tokens after it are those that Eq. 1 maps: words and end-of-text are so met at many positions.
# The prompts the paper measures with are kept out: measuring on what was edited would flatter the result.
TEMPLATES: dict[str, tuple[str, ...]] = _load()


def checked_template(text: str) -> str:
    """A prompt as a template. Raises TemplateError without a {} for the phrase, and for other braces.

    It is filled by `mace.method.tokens.fill`, however many {} it holds.
    """
    template = composed(text)
    rest = template.replace("{}", "")
    if rest == template or "{" in rest or "}" in rest:
        raise TemplateError(f"{template!r} needs {{}} where the phrase goes, and no other braces")
    return template


def read_templates(text: str, field: str) -> tuple[str, ...]:
    """An artist's own prompts, one a line, each with {} where the phrase goes; each is taken once.

    Blank lines are passed over, text after ` #` is a comment.  field: the input or file that holds the text. Raises
    TemplateError, naming field and line, for a line that `checked_template` refuses. An empty text gives no templates.
    """
    check_characters(text, field)
    found: list[str] = []
    for number, raw in enumerate(text.splitlines(), start=1):
        line = uncommented(raw)
        try:
            found += [checked_template(line)] if line else []
        except TemplateError as error:
            raise TemplateError(f"{field}: line {number}: {error}") from None
    return tuple(dict.fromkeys(found))
