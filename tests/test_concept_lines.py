"""The page's reader of lines of concepts against the node's: the same errors, and rows that say what the lines say."""

import json
import random
import re
from dataclasses import replace
from itertools import product

import pytest

from mace.concepts.concept import TYPES, Concept, as_line, comma_lines, merge, parse_concepts
from mace.concepts.notation import read_lines
from mace.concepts.pasted import offer
from mace.concepts.text import TextError, normalised
from tests.test_notation import OF_THE_RELEASE, nasty

pytestmark = pytest.mark.browser

MODULE = "import('/extensions/mace-comfyui/concept_lines.js')"
LONG = "a " * 70 + "dog"

# Texts of one or more lines with what people get wrong in them.
TEXTS = [
    "",
    "# only a comment\n\n , \n- ",
    "dog -> sky\nship -> a -> b\ncat > mouse\ncat <- dog\ndog\n\u2022 horse \u21d2 forest # wild",
    "dog | hound, pup -> cat\nhound\n * pup -> x\ncat | kitty | puss\nbird | , crow\nfrog ->\n-> moon\n| x",
    "dog = cat\na = b = c -> d\nship = 0.5 # half",
    "dog -> dog\nsky\nbird | Bird\nfrog | a, b, A",
    'Van Gogh; Claude Monet\n<cat-toy>\n<cat toy>\na >\n"dog\n\'a\' -> `b`\n"a; b"; \u201cc\u201d',
    'dog]\n]\n[x] y]\n{a}\n"a {} b"\n"{"',
    "d\ud83dog\n\ue000x -> y\nfine\na\x00b\n" + "x" * 30 + "\u009f" + "y" * 30,
    f"{LONG} > b\n{'q' * 200} -> {'q' * 200}\n'{LONG}' -> a > b\n{LONG}\n{LONG}",
    "it's > a\nit's \"so\" > a\na\\b > c\ncaf\u00e9\nCAFE\u0301\n\U0001f469\u200d\U0001f680 > x\n\u3000\u200b",
    "cat -> a dog\ndog | hound\nbird -> my Hound  here\nship -> hot dogs",
    "a -&gt; b\nc \uff1d\uff1e d\n\uff02e\uff02\nf \u2014> g\nh - > i\nj \u27a1\ufe0f k",
    "[style] Van Gogh\n[Style]art\n[stile] x\n[style]\n* [object] airplane -> ground\n[object] [style] y",
    "- [explicit] sky\n- [x] done\n- [a, b]\n- [style]",
    '[style]"a -> b" | c\n[style] a person\n[celebrity] a person\ndog [style]\n[object] | x',
    '[a, b]\n["a"] b\n[object] -> y',
    "person\na person\nart\nground -> sky\nairplane -> ground\nautomobile -> ship",
]


@pytest.fixture
def page(kept_page):
    return kept_page


def call(page, code: str, given):
    """A function of the module's exports `lines` and of what is given, which may hold halves of characters."""
    return page.evaluate(
        f"async given => {{ const lines = await {MODULE}; return ({code})(JSON.parse(given)); }}", given
    )


def expected(text: str, type: str) -> tuple[dict[int, str], str | None]:
    """(the error of each line by its index, the first error of the list as a whole): what the node says, one after the
    other, with each line that it refuses taken out."""
    lines, errors = text.splitlines(), {}
    while True:
        try:
            concepts = parse_concepts("\n".join(lines), type)
            break
        except TextError as error:
            number, said = re.fullmatch(r"concepts: line (\d+): (.*)", str(error), re.DOTALL).groups()
            errors[int(number) - 1], lines[int(number) - 1] = said, ""
    try:
        merge(concepts)
    except TextError as error:
        return errors, str(error)
    return errors, None


def offered(text: str) -> str:
    """What the node says of a text as another program's list, "" for others."""
    try:
        return offer(read_lines(text, "concepts"), text, True) or ""
    except TextError:
        return ""


def random_texts() -> list[str]:
    rng = random.Random(5)
    made = []
    for _ in range(300):
        lines = []
        for _ in range(rng.randint(1, 4)):
            target, *others = (nasty(rng) or "x" for _ in range(4))
            lines.append(target + rng.choice(["", f" | {others[0]}", f"|{others[0]},{others[1]}"]))
            lines[-1] += rng.choice(["", f" -> {others[2]}", f"\u2192{others[2]} # note"])
        made.append("\n".join(lines))
    return [text for text in made if not offered(text)]


def test_errors_are_the_nodes_own(page):
    # Of a list that can be offered in this notation the node says that and no more.
    texts = [text for text in TEXTS if not offered(text) or offered(text).startswith("line ")]
    assert len(texts) > len(TEXTS) - 2
    cases = list(product([*texts, *random_texts()], TYPES))
    code = "cases => cases.map(([text, type]) => [...lines.errorsOf(text, type)])"
    found = [dict(map(tuple, errors)) for errors in call(page, code, json.dumps(cases))]
    assert len(cases) > 1000
    told = 0
    for (text, type), errors in zip(cases, found, strict=True):
        single, whole = expected(text, type)
        rest = {index: said for index, said in errors.items() if index not in single}
        assert {index: errors.get(index) for index in single} == single, text
        assert (rest[min(rest)] if rest else None) == whole, text
        told += len(errors)
    assert told > 500


def test_hints_are_the_nodes_own(page):
    texts = [
        'dog, cat\n"a, b"\n[style] Monet\uff0c "x | y",  Van Gogh | a, b -> c, d # e, f\n\u201cc, d\u201d\ndog,',
        *random_texts(),
    ]
    found = [
        [f"line {index + 1}: {said}" for index, said in hints]
        for hints in call(page, "texts => texts.map(text => [...lines.hintsOf(text)])", json.dumps(texts))
    ]
    assert found == list(map(comma_lines, texts)) and sum(map(len, found)) > 20
    assert [said.partition(": if")[0].partition("line: ")[2].partition("; ")[0] for said in found[0]] == [
        "dog, then cat",
        'Monet, then "x | y", then Van Gogh',
    ]


def test_without_a_type_only_what_is_wrong_under_every_type(page):
    found = call(page, "texts => texts.map(text => [...lines.errorsOf(text, null)])", json.dumps(["sky\nart", "a\na"]))
    assert found == [[], [[1, "'a' already stands in line 1; remove one of them"]]]


def test_other_programs_lists_are_known(page):
    texts = [OF_THE_RELEASE, "['adam', 'object'],", '{"dog": "cat"}', '- target: "dog"', "1. a\n2. b", "dog\n- cat"]
    texts += ["1. FC K\u00f6ln\n3. Liga", "# people: all of them\n- dog", "Alien: Covenant", *TEXTS]
    found = call(page, "texts => texts.map(lines.isForeign)", json.dumps(texts))
    assert found == [bool(offered(text)) for text in texts] and any(found) and not all(found)


def valid_lines() -> list[str]:
    rng = random.Random(7)
    made = []
    while len(made) < 400:
        target, alias, other, mapping = (nasty(rng) for _ in range(4))
        if not target or len({*map(normalised, (target, alias, other, mapping)), ""}) < 5:
            continue
        line = as_line(Concept(target, mapping, "object", rng.choice([(), (alias,), (alias, other)])))
        made.append(
            rng.choice(["", "- ", "\u2022 ", "  ", "* "])
            + rng.choice(["", "", "[object] ", "[Celebrity]"])
            + line
            + rng.choice(["", ",", "  # note", "\t#x -> y"])
        )
    plain = ["dog", "hot  dog\u200b -> b", '"a" | "b, c" \u21d2 d', "dog\uff5chound\uff0cpup --> cat", "C#", "a->b"]
    return [*made, *plain, "'dog' | `pup` => \u201ccat\u201d,", '12" record | lp']


def read(line: str) -> Concept:
    (concept,) = parse_concepts(line, "style")
    return concept


def test_a_row_written_again_says_the_same(page):
    """As it was, with another mapping, switched off, and on again."""
    code = """given => given.map(line => {
        const row = lines.rowOf(line);
        const off = lines.switched(line, false);
        const again = lines.rowOf(off);
        const shown = again.kind === "concept" ? lines.lineFrom({...again, off: false}) : null;
        return [lines.lineFrom(row), lines.lineFrom({...row, mapping: "the moon"}), off, lines.switched(off, true),
            again.off, shown, row.comment]; })"""
    given = valid_lines()
    bare = ["dog", "- hot  dog  # mine", "C#", "'dog',", "dog\uff1a b", '"dog"', 'a \\ b "c"']
    given += bare
    for line, (same, other, off, on, is_off, shown, comment) in zip(
        given, call(page, code, json.dumps(given)), strict=True
    ):
        was = read(line)
        assert read(same) == was, (line, same)
        changed = read(other)
        assert changed == replace(was, mapping="the moon"), (line, other)
        assert other.endswith(comment) and ("note" not in line or "note" in comment)
        assert parse_concepts(off, "style") == [] and is_off
        # A word alone is told from a comment by quotes, which go where they are not needed.
        assert on == line or (line in bare and read(on) == was)
        assert read(shown) == was, (line, off)


def test_what_is_shown_of_each_kind_of_line(page):
    given = ["# dog -> cat", "#dog|pup", '# "dog"', "# the animals", "# -> x", "##", "", " , ", "#\tdog -> cat # big"]
    given.insert(3, "# [style] Monet")
    found = call(page, "given => given.map(lines.rowOf)", json.dumps(given))
    kinds = [row and (row["kind"], row["off"], row.get("target", row.get("text"))) for row in found]
    assert kinds == [
        ("concept", True, "dog"),
        ("concept", True, "dog"),
        ("concept", True, "dog"),
        ("concept", True, "Monet"),
        ("comment", True, "# the animals"),
        ("comment", False, "# -> x"),
        ("comment", False, "##"),
        None,
        None,
        ("concept", True, "dog"),
    ]
    assert found[-1]["comment"] == " # big"


def test_cells_as_they_are_typed(page):
    """(target, aliases, mapping, the line)."""
    cases = [
        ("dog", "", "", "dog"),
        (" hot dog ", "pup, hound", "cat", "hot dog | pup, hound -> cat"),
        ("dog -> cat # mine", "", "", "dog -> cat # mine"),
        ("dog # mine", "", "cat", '"dog # mine" -> cat'),
        ("#metoo", "", "", '"#metoo"'),
        ("dog", "", "#sky", 'dog -> "#sky"'),
        ("", "", "cat", "-> cat"),
        ("", "", "", ""),
    ]
    code = "given => given.map(([target, aliases, mapping]) => lines.lineFrom({off: false, target, aliases, mapping}))"
    assert call(page, code, json.dumps([case[:3] for case in cases])) == [case[3] for case in cases]
    # With a type that is chosen; a line that is typed whole may say one too.
    code = code.replace("({off: false,", "({off: false, type: 'style',")
    typed = [f"[style] {case[3]}" for case in cases[:2]] + ["[style] dog -> cat # mine", "[style] -> cat", ""]
    cases = [*cases[:3], *cases[-2:]]
    assert call(page, code, json.dumps([case[:3] for case in cases])) == typed
    row = call(page, "given => lines.rowOf(given)", json.dumps('  [Style]  "a, b"  |c -> d # e'))
    assert row["type"] == "style" and (row["target"], row["aliases"], row["mapping"]) == ('"a, b"', "c", "d")
    assert call(page, "given => lines.rowOf(given).target", json.dumps("[stile] dog")) == "[stile] dog"


def test_lines_are_changed_alone(page):
    """(what is done, the text, what is given, what becomes of it)."""
    cases = [
        ("withLine", "a\r\nb\x0bc", [1, "x"], "a\r\nx\x0bc"),
        ("withoutLine", "a\r\nb\nc", [0], "b\nc"),
        ("withoutLine", "a\r\nb\nc", [2], "a\r\nb"),
        ("withoutLine", "a", [0], ""),
        ("withLines", "", [1, ["a", "b"]], "a\nb"),
        ("withLines", "# c\n", [2, ["a"]], "# c\na"),
        ("withLines", "a\r\nb", [1, ["x", "y"]], "a\r\nx\r\ny\r\nb"),
        ("withLines", "a\r\nb", [2, ["x"]], "a\r\nb\r\nx"),
        ("withMoved", "a\r\n# n\nb\n", [2, 0], "b\r\na\n# n\n"),
        ("withMoved", "a\nb\nc", [0, 2], "b\na\nc"),
        ("withMoved", "a\nb\nc", [0, 3], "b\nc\na"),
        ("withMoved", "a\nb\nc", [1, 1], "a\nb\nc"),
    ]
    code = "given => given.map(([name, text, args]) => lines[name](text, ...args))"
    assert call(page, code, json.dumps([case[:3] for case in cases])) == [case[3] for case in cases]
