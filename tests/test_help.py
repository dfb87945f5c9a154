"""The help pages: every message that they explain is one that the code can say."""

import ast
import json
import re
from functools import cache
from pathlib import Path

import pytest
from PIL import Image

from devtools.node_pictures import SHOWN, shown_of

REPO = Path(__file__).resolve().parent.parent
PAGES = sorted((REPO / "web/docs").glob("*.md"))
# What stands for a value in a message of the code.
VALUE = "\0"
# Parts of a message that may be values.
FILLED = re.compile(r"""\d[\d.e+-]*|'[^']*'|"[^"]*\"""")
# The host's own messages, which a page may explain too.
HOSTS = ("Value not in list", "Required input is missing", "Allocation on device")


@cache
def messages() -> tuple[str, ...]:
    """Every text in the code that it can say, with VALUE in place of what is filled in: what stands in docstrings,
    tooltips and descriptions is none."""
    found = []
    for room in ("nodes", "mace"):
        for path in (REPO / room).rglob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            told = [own for node in ast.walk(tree) for own in _of_the_schema(node)]
            unsaid = {id(own) for top in told for own in ast.walk(top)}
            for node in ast.walk(tree):
                if id(node) in unsaid:
                    continue
                if isinstance(node, ast.JoinedStr):
                    found.append(
                        "".join(
                            getattr(part, "value", VALUE) if isinstance(part, ast.Constant) else VALUE
                            for part in node.values
                        )
                    )
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    for path in (REPO / "web").glob("*.js"):
        found += re.findall(r'"([^"\n]+)"', path.read_text(encoding="utf-8"))
    return tuple(" ".join(text.split(" ")) for text in found)


def _of_the_schema(node: ast.AST) -> list[ast.AST]:
    """What explains: texts that stand alone, as docstrings do, and the tooltips and descriptions of nodes."""
    if isinstance(node, ast.Expr):
        return [node.value] if isinstance(node.value, ast.Constant) else []
    return [node.value] if isinstance(node, ast.keyword) and node.arg in ("tooltip", "description") else []


def said(fragment: str) -> bool:
    """Whether the texts of the code hold a fragment: one of them, or two where one is filled into the other."""
    words = fragment.split()
    return _said(words) or any(
        _long_enough(words[:cut])
        and _long_enough(words[cut:])
        and _said([*words[: cut - 1], words[cut - 1].rstrip(";:,")])
        and _said(words[cut:])
        for cut in range(1, len(words))
    )


def _long_enough(words: list[str]) -> bool:
    """Whether a part of a message is one by itself: any two words would be found somewhere."""
    return len(words) > 2 or len(words) == 2 and any(map(FILLED.search, words))


def _said(words: list[str]) -> bool:
    """Whether one text holds these words. Numbers and what is quoted may be values there, and a quarter of the rest."""
    patterns, plain = [], 0
    for word in words:
        filled = FILLED.sub(VALUE, word)
        plain += filled == word
        end = re.search(r"[;:,.]*$", word)[0]
        patterns.append("|".join(re.escape(own) for own in dict.fromkeys((word, filled, VALUE + end))))
    return _held(r"\s+".join(f"(?:{own})" for own in patterns), plain - plain // 4)


@cache
def _held(pattern: str, least: int) -> bool:
    return any(
        sum(VALUE not in word for word in found[0].split()) >= least
        for text in (*messages(), *HOSTS)
        for found in re.finditer(pattern, text)
    )


def quoted(page: Path) -> list[str]:
    """What a page's table of messages quotes, in parts between the dots that stand for values."""
    text = page.read_text(encoding="utf-8")
    parts = []
    for table in re.findall(r"^\| (?:Message|Error)[^\n]*\n\|[-| ]+\n((?:\|[^\n]*\n?)*)", text, re.MULTILINE):
        for row in table.splitlines():
            # An escaped bar is a part of its cell.
            cell = re.split(r"(?<!\\)\|", row)[1].replace("\\|", "|")
            parts += [part for span in re.findall(r"`([^`]+)`", cell) for part in re.split(r"\.\.\.|\u2026", span)]
    return [stripped for part in parts if len(stripped := part.strip(" ,:()'\"")) > 3]


def test_pages_with_messages_are_found():
    assert sum(bool(quoted(page)) for page in PAGES) > 12
    assert said("write one concept a line as") and not said("write two concepts a line as")
    assert not said("fusion starts from the original model")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_message_on_a_page_is_in_the_code(page):
    assert [part for part in quoted(page) if not said(part)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_page_shows_its_node(page):
    """A real screenshot, small, at the address that the page's panel makes of it."""
    (shown,) = re.findall(r"!\[[^]]+\]\((pictures/[^)]+)\)", page.read_text(encoding="utf-8"))
    picture = page.parent / shown
    with Image.open(picture) as opened:
        assert picture.stem == page.stem and opened.format == "PNG" and opened.width > 300
    assert picture.stat().st_size < 60_000


def test_the_pictures_are_of_the_nodes_as_they_are():
    """Where this fails, take them anew: python -m devtools.node_pictures."""
    nodes = json.loads((REPO / "tests/snapshots/object_info.json").read_text(encoding="utf-8"))
    assert json.loads(SHOWN.read_text(encoding="utf-8")) == {name: shown_of(entry) for name, entry in nodes.items()}
