"""Cells as Markdown."""

from collections.abc import Mapping, Sequence

from benchmarks.erasure.statistics import values
from benchmarks.erasure.text import NAMES

Cells = Mapping[str, Mapping]


def percent(value: float | None) -> str:
    """0..1 as whole percent; a dash for what was not measured."""
    return "-" if value is None else f"{100 * value:.0f}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def name_of(method: str) -> str:
    """A method as the page names it."""
    return NAMES[method]


def methods_of(cells: Cells) -> list[str]:
    """The methods in the order of NAMES."""
    present = {cell["method"] for cell in cells.values()}
    return [method for method in NAMES if method in present]


def share(cell: Mapping, group: str, kind: str = "right") -> float | None:
    """The mean of one group of a cell."""
    found = values(cell, group, kind)
    return None if found is None else float(found.mean())
