"""Lists of other programs, pasted, told in this pack's notation: YAML, JSON, Python lists, tables with commas or tabs.

Among them are the configurations of MACE's own release (multi_concept, mapping_concept), the prompt files of SPM and
LECO (target, neutral), and tables of prompts as ESD and UCE read them.
"""

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import yaml

from .notation import ARROW, Line, written
from .text import composed

# Longer texts are no lists that somebody pasted.
_MOST, _DEEP = 100_000, 12
_SHOWN = 60
_FOREIGN = re.compile(
    r"""^(?:\[(?![A-Za-z]+\]\s*\S)|[\]}]|\{(?!\})|\(\s*["']|-\s+(?:\[(?![A-Za-z]+\]\s*\S)|-|["']?[a-z_]+["']?:(?:\s|$))|["']?[A-Za-z_]\w*["']?:$|"(?:[^"\\]|\\.)*"\s*:\s|'[^']*'\s*:\s)"""
)
_TARGETS = ("target", "concept", "prompt", "name", "class", "artist", "erase", "target_concept", "concept_name")
# Of a table: words that a list of names is not likely to hold.
_COLUMNS = ("target", "concept", "prompt", "target_concept", "concept_name")
_LISTS = ("concepts", "targets", "prompts", "names", "erase_concepts", "edit_concepts", "artists", "classes")
_MAPPINGS = ("mapping", "mapping_concept", "anchor", "anchor_concept", "guided_concept", "destination", "neutral")
_NUMBERED = re.compile(r"^(\d{1,6})[.)]\s+")
# Of this notation: a line that holds one is no row of a spreadsheet.
_SIGNS = re.compile(r"->|[|=#\u2192]|^\s*(?:\W|\d+\.)\s")
# Types as other programs call them.
_KINDS = {"object": "object", "celebrity": "celebrity", "style": "style", "explicit": "explicit"}
_KINDS |= {"art": "style", "artist": "style"}


@dataclass(frozen=True)
class _Entry:
    target: str
    mapping: str = ""
    kind: str = ""


def offer(lines: Sequence[Line], text: str, mapped: bool) -> str | None:
    """What a pasted list means, as an error's words, with the list as lines of this notation; None for other texts.

    lines: of the text, as `read_lines` gives them.  mapped: whether its concepts have mappings.
    """
    numbered = _numbered(lines)
    if numbered:
        return f"the lines of this list are numbered. Without numbers it is:\n{numbered}"
    typed = text.splitlines()
    table = _table(_commas(lines)) or _tabbed([typed[line.number - 1] for line in lines])
    first = next((line for line in lines if _FOREIGN.match(composed(typed[line.number - 1]))), None)
    if first is None and table is None:
        return None
    found = table if first is None else _structure(text)
    unique = {entry.target: entry for entry in found or () if entry.target}
    if not unique:
        return (
            f"line {first.number}: {first.raw[:_SHOWN]!r} is a bit of another program's list; write one concept a "
            "line: target -> mapping"
            if first
            else None
        )
    kinds = sorted({entry.kind for entry in unique.values()} - {""})
    of_kinds = f" Its type ({kinds[0]}) is the node's choice type." if len(kinds) == 1 else ""
    as_lines = "\n".join(
        (f"[{entry.kind}] " if len(kinds) > 1 and entry.kind else "")
        + written(entry.target)
        + (f" {ARROW} {written(entry.mapping)}" if entry.mapping and mapped else "")
        for entry in unique.values()
    )
    return f"this is another program's list.{of_kinds} In this node's notation it is:\n{as_lines}"


def _commas(lines: Sequence[Line]) -> list[list[str]]:
    """The cells of lines with commas, none where they cannot be read."""
    try:
        return [[composed(cell) for cell in row] for row in csv.reader(line.raw for line in lines)]
    except csv.Error:
        return []


def _tabbed(typed: Sequence[str]) -> list[_Entry] | None:
    """The entries of lines out of a spreadsheet, None for other texts.

    Each of its rows has a tab, and there are two at least; elsewhere a tab may stand before an arrow, or for a space.
    """
    if len(typed) < 2 or not all("\t" in line for line in typed) or any(_SIGNS.search(line) for line in typed):
        return None
    if not any(re.search(r"\S\t\s*\S", line) for line in typed):
        return None
    rows = [[composed(cell) for cell in line.lstrip().split("\t")] for line in typed]
    wide = max(map(len, rows))
    rows = [row + [""] * (wide - len(row)) for row in rows]
    return _table(rows) or [_Entry(row[0], row[1] if wide == 2 else "") for row in rows]


def _table(table: Sequence[Sequence[str]]) -> list[_Entry] | None:
    """The entries of a table whose first line names its columns, None for other texts."""
    head, *rows = table or [[]]
    target = next((head.index(name) for name in _COLUMNS if name in head), None)
    if not rows or len(head) < 2 or target is None or any(len(row) != len(head) for row in rows):
        return None
    mapping = next((head.index(name) for name in _MAPPINGS if name in head), None)
    return [_Entry(row[target], "" if mapping is None else row[mapping]) for row in rows]


def _numbered(lines: Sequence[Line]) -> str | None:
    """The lines of a list that are numbered from 1 without their numbers, None for other texts."""
    numbers = [_NUMBERED.match(line.raw) for line in lines]
    if len(lines) < 2 or not all(match and int(match[1]) == i for i, match in enumerate(numbers, start=1)):
        return None
    return "\n".join(line.raw[match.end() :] for line, match in zip(lines, numbers, strict=True))


def _structure(text: str) -> list[_Entry]:
    """The entries of a YAML, JSON or Python list, or of lines out of one; none where it cannot be read."""
    depth = accumulate((c in "[{") - (c in "]}") for c in text)
    if len(text) > _MOST or max(depth, default=0) > _DEEP:
        return []
    # Python's tuples are lists.
    text = re.sub(r"\((?=\s*[\"'])", "[", text)
    text = re.sub(r"(?<=[\"'])(\s*)\)", r"\1]", text).strip()
    for tried in (text, f"[{text}]", f"[{text.rstrip('], ' + chr(10))}]]"):
        try:
            # All scalars are texts: nothing is made of them but lists.
            data = yaml.load(tried, yaml.BaseLoader)
            found = list(_entries(data, 0)) if isinstance(data, list | dict) else []
        except (yaml.YAMLError, RecursionError, ValueError):
            continue
        if found:
            return found
    return []


def _entries(data: object, depth: int) -> Iterator[_Entry]:
    if depth > _DEEP:
        raise RecursionError
    if isinstance(data, dict):
        yield from _of_mapping(data, depth)
    elif isinstance(data, list):
        pairs = [part for part in data if isinstance(part, list)]
        all_pairs = len(pairs) == len(data) and all(_is_pair(part) for part in pairs)
        if _is_pair(data) and data[1] in _KINDS:
            # The release's names are written with hyphens, which it reads as spaces.
            name = composed(data[0])
            yield _Entry(name if " " in name else name.replace("-", " "), kind=_KINDS[data[1]])
        elif all_pairs and not any(part[1] in _KINDS for part in pairs):
            yield from (_Entry(*map(composed, part)) for part in pairs)
        else:
            for part in data:
                yield from _entries(part, depth + 1)
    elif isinstance(data, str) and data:
        yield _Entry(composed(data))


def _of_mapping(data: dict, depth: int) -> Iterator[_Entry]:
    if "multi_concept" in data:
        targets = list(_entries(data["multi_concept"], depth + 1))
        mappings = [entry.target for entry in _entries(data.get("mapping_concept", []), depth + 1)]
        yield from (
            _Entry(entry.target, mapping, entry.kind)
            for entry, mapping in zip(targets, mappings + [""] * len(targets), strict=False)
        )
        return
    named = next((data[name] for name in _TARGETS if isinstance(data.get(name), str)), None)
    if named is not None:
        mapping = next((data[name] for name in _MAPPINGS if isinstance(data.get(name), str) and data[name]), "")
        yield _Entry(composed(named), composed(mapping))
        return
    listed = next((data[name] for name in (*_LISTS, *_TARGETS) if isinstance(data.get(name), list)), None)
    inner = [value for value in data.values() if isinstance(value, list | dict)]
    if listed is not None:
        yield from _entries(listed, depth + 1)
    elif inner:
        yield from _entries(inner, depth + 1)
    elif all(isinstance(value, str) for value in data.values()):
        yield from (_Entry(composed(name), composed(value)) for name, value in data.items())


def _is_pair(data: object) -> bool:
    return isinstance(data, list) and len(data) == 2 and all(isinstance(part, str) for part in data)
