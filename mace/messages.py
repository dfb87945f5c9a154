"""Messages for the artist stay readable whatever they quote."""

import re

LONGEST = 120
# Not from one apostrophe to the next.
_QUOTED = re.compile(rf"(?<!\w)(?:'[^']{{{LONGEST},}}'|\"[^\"]{{{LONGEST},}}\")(?!\w)")
_WORD = re.compile(rf"\S{{{LONGEST + 4},}}")


def shortened(message: str) -> str:
    """A message whose long quotes and words are cut in the middle."""
    for pattern in (_QUOTED, _WORD):
        message = pattern.sub(lambda found: f"{found[0][:60]} ... {found[0][-20:]}", message)
    return message


class MessageError(ValueError):
    """An error that tells the artist what to change; long texts that it quotes are cut."""

    def __init__(self, message: str = ""):
        super().__init__(shortened(message))
