"""Cells as Markdown."""

from collections.abc import Mapping, Sequence

from benchmarks.erasure.statistics import values

Cells = Mapping[str, Mapping]

# The methods as the page names them, in its order.
NAMES = {
    "base": "base model",
    "refined": "refined",
    "fused": "**MACE (fused)**",
    "naive": "naive sum",
    "own words": "refined, own words too",
    "own words, near kept": "the same, near words and longer names kept",
    "UCE": "UCE",
    "SPEED": "SPEED",
    "SPEED as for lists": "SPEED, settings as for lists",
    "OCE": "OCE",
    "OCE as for people": "OCE, weights as for people",
    "OCE as for people, derived": "OCE, the same, derived form",
    "ESD-x": "ESD-x",
    "ESD-u": "ESD-u",
    "AC": "AC",
    "FMN": "FMN",
    "SLD-M": "SLD-M",
    "negative prompt": "negative prompt",
    "base, other noise": "base model, other noise",
}


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
