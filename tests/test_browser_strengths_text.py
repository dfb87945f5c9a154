"""Strengths and concepts as text: ComfyUI's real page reads and writes them as the nodes do."""

import random

import pytest

from mace.concepts.concept import parse_concepts
from mace.concepts.notation import written
from mace.concepts.strengths import parse_strengths
from mace.concepts.text import normalised
from tests.pages import or_refused, parsed_in_page
from tests.test_notation import nasty

pytestmark = pytest.mark.browser

MODULE = "import('/extensions/mace-comfyui/strengths_text.js')"
NOTATION = "import('/extensions/mace-comfyui/notation.js')"

LINES = [
    "",
    "# dog = 3",
    "dog = 0.5\r\n\n* = .25 # rest\nC# = 1.",
    " Hot  Air\tballoon=1e-1\x0bship = +0",
    "a = b = 0.5",
    "dog",
    "= 0.5",
    "dog = 1.5",
    "dog = -0.1",
    "dog = nan",
    "dog = 0x1",
    "dog =",
    "dog = 1\n DOG = 0",
    '\ufeff"a = b" = 0.5\n- dog \uff1d 0,25,\n\u201chot dog\u201d = 1  # all\n"#metoo" = 0',
    "caf\u00e9 = 0.5\nCAFE\u0301 = 0.2",
    "caf\u00e9 = 0.5\n\u03a3\u0391\u03a3 = 0.1\nC\u200bat\xa0\u3000dog = 1",
    '"dog = 1',
    "dog > cat = 1",
    "d\ud83dog = 1",
    r'"say \"hello\" \\ # now" = 0.5 # "x"',
]
CONCEPT_LINES = [
    '"a -> b" | c => d\n* dog \u21d2 x\n# c\n- z\uff5cq\n\u2022 "#metoo", \n12" record -&gt; sky',
    '[style] Van Gogh | van\n* [Object]"a -> b" -> c\n- [celebrity] Ann',
    "\u201cdog\u201d | hound\n'cat'--> x\nC#major\nFC K\u00f6ln - a club\ncaf\u00e9",
]


@pytest.fixture
def page(kept_page):
    """One page for all: every test reads texts alone."""
    return kept_page


def test_the_page_reads_strengths_as_the_node_does(page):
    found = parsed_in_page(page, f"(await {MODULE}).parseStrengths", "value", LINES)
    assert found == {lines: or_refused(parse_strengths, lines) for lines in LINES}


def test_the_page_reads_concepts_as_the_node_does(page):
    found = page.evaluate(f"async texts => texts.map((await {MODULE}).conceptNames)", CONCEPT_LINES)
    assert found == [[concept.target for concept in parse_concepts(text, "style")] for text in CONCEPT_LINES]


def test_the_page_writes_and_compares_names_as_the_node_does(page):
    rng = random.Random(3)
    names = [name for name in (nasty(rng) for _ in range(500)) if name]
    wrote, keys = page.evaluate(
        f"""async names => {{ const {{ written, normalised }} = await {NOTATION};
            return [names.map(written), names.map(normalised)]; }}""",
        names,
    )
    assert wrote == list(map(written, names)) and keys == list(map(normalised, names))


def test_a_line_is_rewritten_alone(page):
    """(text, name, strength, settled, what becomes of it)."""
    cases = [
        ("", "dog", 0.5, True, "dog = 0.5"),
        ("", "dog", 1, True, ""),
        ("ship=0.2", "hot dog", 0, True, "ship=0.2\nhot dog = 0"),
        ("dog = 0.5\r\n# end\r\n", "Dog", 0.25, True, "dog = 0.25\r\n# end\r\n"),
        ("# top\ndog = 0.5\nship = 0", "dog", 1, True, "# top\nship = 0"),
        ("dog = 0.5\nship = 0", "dog", 1, True, "ship = 0"),
        ("dog = 0.5\nship = 0", "dog", 1, False, "dog = 1\nship = 0"),
        ("dog = 0.5", "dog", 1, True, ""),
        ("dog = 0.5  # half = 0.5", "dog", 1, True, "dog = 1  # half = 0.5"),
        ("* = 0\ndog = 0.5", "dog", 1, True, "* = 0\ndog = 1"),
        ("* = 0", "dog", 1, True, "* = 0\ndog = 1"),
        ("a = b = 0.5", "a = b", 0.1, True, "a = b = 0.1"),
        ("dog = 2\nship = 1", "ship", 0, True, "dog = 2\nship = 1"),
        ("", "a # b", 0.5, True, '"a # b" = 0.5'),
        ('"#metoo" = 0.5 # x = 1', "#MeToo", 0.2, True, '"#metoo" = 0.2 # x = 1'),
        ("dog\uff1d0,5 # half", "dog", 0.25, True, "dog\uff1d0.25 # half"),
        ("cafe\u0301 = 0.5", "caf\u00e9", 0.1, True, "cafe\u0301 = 0.1"),
    ]
    found = page.evaluate(
        f"""async cases => {{ const {{ withStrength }} = await {MODULE};
            return cases.map(([text, name, value, settled]) => withStrength(text, name, value, settled)); }}""",
        [case[:4] for case in cases],
    )
    assert found == [case[4] for case in cases]


def test_names_that_the_text_cannot_hold(page):
    names = ["dog", "C#", "a = b", "C # sharp", "#1 dog", "*", " "]
    assert page.evaluate(f"async names => names.map((await {MODULE}).writable)", names) == [True] * 5 + [False] * 2
