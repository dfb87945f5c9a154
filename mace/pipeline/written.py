"""Numbers as artists write or link them: auto, or a number in its range."""

import math

from ..messages import MessageError

AUTO = "auto"
MOST_WEIGHT = 1e9
MOST_RATE = 1.0


def is_auto(given: str | float | None) -> bool:
    """Whether a number is left to the node: auto, an empty text, or what is linked and not there yet."""
    return given is None or isinstance(given, str) and given.strip().lower() in (AUTO, "")


def read_weight(name: str, given: str | float | None) -> float | None:
    """A weight of the objective, written or linked: None for auto, else a number in 0..MOST_WEIGHT.

    Raises ValueError.
    """
    if is_auto(given):
        return None
    value = _number(given)
    if not 0 <= value <= MOST_WEIGHT:
        raise MessageError(f"{name}: {given!r} is neither auto nor a number from 0 to {MOST_WEIGHT:g}, such as 1e-4")
    return value


def _number(given: str | float) -> float:
    """A number, NaN where it is none."""
    try:
        return math.nan if isinstance(given, bool) else float(given)
    except (ValueError, TypeError):
        return math.nan


def read_weights(*rows: tuple[str, str | float, float]) -> tuple[list[float], list[str]]:
    """Weights of (name, as given, usual value), the usual one for auto; and a line on each for the artist."""
    values, lines = [], []
    for name, written, usual in rows:
        given = read_weight(name, written)
        values.append(usual if given is None else given)
        lines.append(f"{name} {values[-1]:g}" + (" (auto)" if given is None else ""))
    return values, lines


def read_number(name: str, given: str | float | None, most: float, whole: bool = False) -> float | int | None:
    """A setting of training, written or linked: None for auto, else a number above 0 and up to `most`.

    Raises ValueError.
    """
    if is_auto(given):
        return None
    value = _number(given)
    if not 0 < value <= most or whole and value != int(value):
        kind = f"a whole number from 1 to {most:g}" if whole else f"a number above 0 and up to {most:g}"
        raise MessageError(f"{name}: {given!r} is neither auto nor {kind}")
    return int(value) if whole else value
