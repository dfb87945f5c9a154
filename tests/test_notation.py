"""Lists as people write and paste them: look-alikes are read or refused, never taken into a phrase."""

import random
from functools import partial

import pytest

from mace.concepts.concept import TYPES, Concept, ConceptError, as_line, as_lines, parse_concepts
from mace.concepts.notation import passed_over, written
from mace.concepts.phrases import parse_phrases
from mace.concepts.strengths import parse_strengths, strengths_of
from mace.concepts.subjects import parse_names, parse_synonyms
from mace.concepts.text import TextError, composed, normalised

DOG, HOUND = Concept("dog", "cat", "object"), Concept("dog", "cat", "object", ("hound", "pup"))


@pytest.mark.parametrize(
    "text",
    [
        "dog => cat",
        "dog --> cat",
        "dog ==> cat",
        "dog \u2192 cat",
        "dog \u21d2 cat",
        "dog \u27f6 cat",
        "dog \u27a1\ufe0f cat",
    ]
    + ["dog -&gt; cat", "dog \u2014> cat", "dog \uff1d\uff1e cat", "dog - > cat", "dog->cat"]
    + ["\ufeffdog -> cat", "do\u200bg -> c\u00adat", "\u200edog\xa0->\u3000cat", "- dog -> cat", "\u2022 dog -> cat"]
    + [
        "* dog -> cat",
        '"dog" -> "cat",',
        "\u201cdog\u201d -> \u2018cat\u2019",
        "\u00abdog\u00bb -> \u201ecat\u201c",
        "'dog' -> `cat`;",
    ],
)
def test_what_can_only_mean_one_thing_is_read_as_it(text):
    assert parse_concepts(text, "object") == [DOG]


@pytest.mark.parametrize(
    "text",
    ["dog | hound, pup -> cat", "dog\uff5chound\uff0cpup -> cat", "dog \u2502 hound\u3001 pup \u21d2 cat"]
    + ['"dog" | "hound", \'pup\' -> cat', "- dog|hound,pup->cat,"],
)
def test_aliases_by_any_bar_and_comma(text):
    assert parse_concepts(text, "object") == [HOUND]


@pytest.mark.parametrize(
    "line, phrase",
    [
        ('"a, b | c -> d # e = f"', "a, b | c -> d # e = f"),
        ('"#metoo"', "#metoo"),
        (r'"say \"hello\" \\ now"', 'say "hello" \\ now'),
        ('12" record', '12" record'),
        ('"Weird Al" Yankovic', '"Weird Al" Yankovic'),
        ("Georgia O'Keeffe", "Georgia O'Keeffe"),
        ("Catrin Welz-Stein", "Catrin Welz-Stein"),
        ("<cat-toy>", "<cat-toy>"),
        ("Star Wars: A New Hope", "Star Wars: A New Hope"),
        ("C#major", "C#major"),
        ("(dog:1.2)", "(dog:1.2)"),
    ],
)
def test_phrases_that_stay_as_they_are(line, phrase):
    assert [concept.target for concept in parse_concepts(line, "style")] == [phrase]


@pytest.mark.parametrize(
    "line, message",
    [
        ("dog > cat", "'dog > cat' is no phrase; if it is a mapping, write: dog -> cat"),
        ("dog >> cat", "write: dog -> cat"),
        ("cat <- dog", "write: dog -> cat"),
        ("dog = cat", "a mapping is written dog -> cat"),
        ("dog = 0.5", "'=' gives a strength in Fuse LoRAs"),
        ("Van Gogh; Claude Monet", "each in its own line: Van Gogh, then Claude Monet"),
        ('"dog', 'a quote is not closed; write "dog"'),
        ("]", "a bit of another program's list"),
        ("dog]", "a bit of another program's list"),
        ('"a {} dog"', "braces"),
        ("d\ud83dog", r"U\+D83D, half of a character"),
        ("\ue000dog", r"U\+E000, of private use"),
        ("do\x00g", r"U\+0000, a control character"),
        ("\U000f0041dog", r"U\+F0041, of private use"),
    ],
)
def test_the_rest_is_refused_with_field_and_line(line, message):
    with pytest.raises(TextError, match=f"^preserve: line 3: .*{message}"):
        parse_concepts(f"horse\n\n{line}", "object", mapped=False, field="preserve")


def test_a_hashtag_is_a_comment_that_is_told():
    assert parse_concepts("#metoo\n# all the rest\ndog #1\n##\nC#", "style")[0].target == "dog"
    told = passed_over('#metoo\n# all the rest\ndog #1\n##\nC#\n"#metoo"')
    assert [line.split(": ")[0] for line in told] == ["line 1", "line 3"]
    assert "'#metoo'" in told[0] and "in quotes" in told[0]


OF_THE_RELEASE = """MACE:
  # >>> primary settings >>>
  multi_concept:
    - [
        ['adam-driver', 'object'],
        [ship, object],
      ]
  use_pooler: true
  learning_rate: 1.0e-05
  mapping_concept:
    - 'a person'
    - 'ground'
  augment: true
  tokenizer_name: null
"""


@pytest.mark.parametrize(
    "text, lines",
    [
        (OF_THE_RELEASE, "adam driver -> a person\nship -> ground"),
        ("['adam-driver', 'object'],\n['amy adams', 'object'],", "adam driver\namy adams"),
        ("[\n  ['adam', 'celebrity'],\n  ['bob', 'celebrity'],\n]", "adam\nbob"),
        ("['adam', 'object'],\n]", "adam"),
        ("('adam', 'celebrity'),\n('bob', 'celebrity')", "adam\nbob"),
        ('["dog", "hot dog"]', "dog\nhot dog"),
        ('{"dog": "cat", "ship": "sky"}', "dog -> cat\nship -> sky"),
        ('{"concepts": ["dog", "a, b"]}', 'dog\n"a, b"'),
        ('[{"target": "dog", "mapping": "cat"}]', "dog -> cat"),
        ('- target: "dog"\n  positive: "dog"\n  neutral: "cat"\n- target: "ship"\n  neutral: ""', "dog -> cat\nship"),
        ("[['dog', 'cat'], ['ship', 'sky']]", "dog -> cat\nship -> sky"),
        ('case_number,prompt,evaluation_seed\n0,Irises,22\n1,"Wheat, with crows",3', 'Irises\n"Wheat, with crows"'),
        ("concept,mapping\ndog,cat\nship,", "dog -> cat\nship"),
        ("hot dog\tfood\nship\t\nTom, Dick\tsky", 'hot dog -> food\nship\n"Tom, Dick" -> sky'),
        ("dog\t12\tcat\nship\t3\tsky", "dog\nship"),
        ("nr\tneutral\ttarget\n1\tcat\tdog\n2\t\tship", "dog -> cat\nship"),
    ],
)
def test_another_programs_list_is_offered_in_this_notation(text, lines):
    with pytest.raises(ConceptError, match="^concepts: this is another program's list") as caught:
        parse_concepts(text, "object")
    offered = str(caught.value).partition("it is:\n")[2]
    assert offered == lines
    assert len(parse_concepts(offered, "style")) == len(lines.splitlines())
    with pytest.raises(TextError, match="^keep: this is another program's list"):
        parse_names(text, "keep")


@pytest.mark.parametrize("text", ["[" * 5000, "&a [*a]\n[", "- [*b", "{" * 300 + "a", "[!!python/object:os.system {}]"])
def test_lists_that_cannot_be_read_are_refused(text):
    with pytest.raises(ConceptError, match="concepts: "):
        parse_concepts(text, "object")


def test_numbered_lines_are_offered_without_numbers():
    with pytest.raises(ConceptError, match="^concepts: the lines of this list are numbered") as caught:
        parse_concepts("1. dog | hound -> cat\n\n2) ship", "object")
    offered = str(caught.value).partition("it is:\n")[2]
    assert [as_line(c) for c in parse_concepts(offered, "object")] == ["dog | hound -> cat", "ship -> ground"]
    assert [c.target for c in parse_concepts("1. FC K\u00f6ln\n3. Liga\n" + "9" * 5000 + ". x", "style")][
        1
    ] == "3. Liga"


def test_long_lines_are_read_or_refused():
    """Of dashes, quotes and letters, nested a thousand deep, wider than a table's cells may be."""
    lines = ["-" * 60_000, '"' * 60_000, '","' * 20_000, "a" * 200_000, "a 1" * 20_000, "<" * 60_000, "= " * 30_000]
    names = partial(parse_names, field="keep")
    refused = 0
    for line in [*lines, "[" * 90_000, "[1, " * 5000 + "]" * 5000]:
        for read in (partial(parse_concepts, type="object"), parse_strengths, names):
            try:
                assert len(read(line)) == 1 or read is names
            except TextError:
                refused += 1
    assert refused >= 13


def test_lists_with_comments_and_bullets_stay():
    text = "# people: all of them\n- dog  # the first\n-\tcat\n\n* ship\t\n1. FC K\u00f6ln"
    assert [c.target for c in parse_concepts(text, "object")] == ["dog", "cat", "ship", "1. FC K\u00f6ln"]
    aligned = parse_concepts("dog\t-> cat\nbird\t| robin\n\thorse\t# all", "object")
    assert [c.target for c in aligned] == ["dog", "bird", "horse"]
    assert [c.target for c in parse_concepts("Alien: Covenant\n- Alien: Covenant 2", "object")][
        1
    ] == "Alien: Covenant 2"


def test_values_by_name_read_the_same_notation():
    text = '\ufeff"a = b" = 0.5\n- dog \uff1d 0,25,\n\u201chot dog\u201d = 1  # all\n"#metoo" = 0'
    assert parse_strengths(text) == {"a = b": 0.5, "dog": 0.25, "hot dog": 1.0, "#metoo": 0.0}
    assert parse_phrases('"a = b" = a thing\n"#metoo" \uff1d face') == {"a = b": "a thing", "#metoo": "face"}
    assert parse_phrases('"a = b"') == {"*": "a = b"}
    assert parse_names("dog, artist\ncat, name", "keep") == ["dog", "artist", "cat", "name"]
    assert parse_names('- "Paris, Texas"\uff0c dog\n"dog"', "keep") == ["Paris, Texas", "dog"]
    read = {"dog": ["canine", "hound"], "Alien: Covenant": ["alien"]}
    assert parse_synonyms("dog: canine\u3001 hound\nAlien: Covenant | alien") == read


@pytest.mark.parametrize(
    "line, said",
    [
        ("dog: 0.5", "dog = 0.5"),
        ("dog -> 0,5", "dog = 0.5"),
        ("hot dog 0.2", "hot dog = 0.2"),
        ("dog = 50%", "dog = 0.5"),
    ],
)
def test_strengths_of_another_notation_are_suggested(line, said):
    with pytest.raises(ConceptError, match=f"^strengths: line 1: .*as in: {said}$"):
        parse_strengths(line)


def test_a_strength_that_is_a_comment_is_told():
    concepts = [Concept("#metoo", "art", "style")]
    with pytest.raises(ConceptError, match="strengths: line 1: '#metoo = 0.5': .*in quotes"):
        strengths_of("#metoo = 0.5", concepts)
    assert strengths_of('"#metoo" = 0.5', concepts) == [0.5]


def nasty(rng: random.Random) -> str:
    """A phrase of signs that mean something somewhere, and letters; no braces."""
    signs = "|,:;=#<>-*\"'`\\/()[]&!?. _%$@~^+"
    signs += "\u2192\u21d2\u2014\u2018\u2019\u201c\u201d\u00ab\u00bb\uff5c\uff0c\u3001\uff1a\uff1d\u2022"
    letters = "abcXYZ019\u00e9\u0301\u00df\u03a3\u4e2d\u0130\U0001f600"
    return composed("".join(rng.choice(signs + letters + "    ") for _ in range(rng.randint(1, 12))))


def test_a_list_reads_back_whatever_its_phrases_hold():
    rng = random.Random(0)
    checked = 0
    while checked < 800:
        target, alias, other, mapping = (nasty(rng) for _ in range(4))
        if not target or len({*map(normalised, (target, alias, other, mapping)), ""}) < 5:
            continue
        concept = Concept(target, mapping, "object", (alias, other))
        assert parse_concepts(as_line(concept), "object") == [concept], as_line(concept)
        typed = parse_concepts(as_line(concept).join(["[Celebrity]", ""]), "style")
        assert typed == [Concept(target, mapping, "celebrity", (alias, other))]
        assert parse_strengths(f"{written(target)} = 0.5") in ({normalised(target): 0.5}, {"*": 0.5})
        assert parse_names(f"{written(target)}, {written(alias)}", "keep") == [target, alias]
        assert [c.target for c in parse_concepts(f"{written(target)}\n{written(alias)}", "object", mapped=False)] == [
            target,
            alias,
        ]
        checked += 1


def test_a_line_may_say_its_own_type():
    text = '[style] Van Gogh\n- [Celebrity]"Adam" | Driver\n* [explicit] nudity -> art\ndog [old]\n"[style] cat"'
    own = ("a drawing of {}",)
    found = parse_concepts(text, "object", own)
    assert [(c.target, c.aliases, c.mapping, c.type) for c in found] == [
        ("Van Gogh", (), "art", "style"),
        ("Adam", ("Driver",), "a person", "celebrity"),
        ("nudity", (), "art", "explicit"),
        ("dog [old]", (), "sky", "object"),
        ("[style] cat", (), "sky", "object"),
    ]
    # Prompts of one's own are for the lines of the node's type.
    assert [bool(c.templates) for c in found] == [False, False, False, True, True]
    assert parse_concepts(text, "style", own)[0].templates == own
    assert parse_concepts("[style] Monet", "object", mapped=False) == [Concept("Monet", "", "style")]
    plain = parse_concepts(text, "object")
    lines = as_lines(plain)
    assert lines.startswith("[style] Van Gogh -> art\n") and all(parse_concepts(lines, kind) == plain for kind in TYPES)
    assert as_lines(plain[3:]) == '"dog [old]" -> sky\n"[style] cat" -> sky'


@pytest.mark.parametrize("line", ["[stile] dog", "[x] dog", "[a, b] dog", "[object] [style] dog"])
def test_brackets_that_hold_no_type_are_refused(line):
    with pytest.raises(
        ConceptError, match=r"^concepts: line 1: (\[\w+\] is no type; write one of \[object\]|.* is a bit of)"
    ):
        parse_concepts(line, "object")


def test_the_releases_types_are_offered_with_the_lines():
    text = "[['adam-driver', 'celebrity'], ['van-gogh', 'art'], ['dog', 'object']]"
    with pytest.raises(ConceptError) as caught:
        parse_concepts(text, "object")
    offered = str(caught.value).partition("it is:\n")[2]
    found = [(c.target, c.type) for c in parse_concepts(offered, "object")]
    assert found == [("adam driver", "celebrity"), ("van gogh", "style"), ("dog", "object")]
