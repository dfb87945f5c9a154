"""Numbers as artists write them: auto, or a number in its range."""

import math

from ..messages import MessageError

AUTO = "auto"
MOST_WEIGHT = 1e9
MOST_RATE = 1.0


def read_weight(name: str, text: str) -> float | None:
    """A weight of the objective: None for auto, else a number in 0..MOST_WEIGHT. Raises ValueError."""
    if text.strip().lower() in (AUTO, ""):
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= MOST_WEIGHT:
        raise MessageError(f"{name}: {text!r} is neither auto nor a number from 0 to {MOST_WEIGHT:g}, such as 1e-4")
    return value


def read_weights(*rows: tuple[str, str, float]) -> tuple[list[float], list[str]]:
    """Weights of (name, text, usual value), the usual one for auto; and a line on each for the artist."""
    values, lines = [], []
    for name, text, usual in rows:
        given = read_weight(name, text)
        values.append(usual if given is None else given)
        lines.append(f"{name} {values[-1]:g}" + (" (auto)" if given is None else ""))
    return values, lines


def read_number(name: str, text: str, most: float, whole: bool = False) -> float | int | None:
    """A setting of training: None for auto, else a number above 0 and up to `most`. Raises ValueError."""
    if text.strip().lower() in (AUTO, ""):
        return None
    try:
        value = int(text) if whole else float(text)
    except ValueError:
        value = 0
    if not 0 < value <= most:
        kind = "a whole number from 1" if whole else "a number above 0 and up"
        raise MessageError(f"{name}: {text!r} is neither auto nor {kind} to {most:g}")
    return value
