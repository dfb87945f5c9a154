"""The list of concepts as an artist writes it."""

import pytest

from mace.concepts.concept import Concept, ConceptError, merge, parse_concepts
from mace.concepts.lists import PAPER_LISTS
from mace.concepts.templates import TEMPLATES


def test_lines():
    text = """
    # vehicles
    airplane -> ground   # the paper's mapping
    cat | kitty,  feline → forest
    hot  dog
    """
    assert parse_concepts(text, "object") == [
        Concept("airplane", "ground", "object"),
        Concept("cat", "forest", "object", ("kitty", "feline")),
        Concept("hot dog", "sky", "object"),
    ]


def test_usual_mappings():
    assert parse_concepts("bird", "object")[0].mapping == "street"
    assert parse_concepts("Tom Hanks", "celebrity")[0].mapping == "a person"
    assert parse_concepts("Claude Monet", "style")[0].mapping == "art"
    assert parse_concepts("nudity", "explicit")[0].mapping == "a person wearing clothes"


def test_a_number_sign_inside_a_word_is_no_comment():
    assert parse_concepts("C#major -> sky", "object")[0].target == "C#major"


@pytest.mark.parametrize(
    "text, message",
    [
        ("dog\n-> sky", "line 2: there is no target"),
        ("dog -> a -> b", "line 1: more than one '->'"),
        ("\n\ndog ->", "line 3: nothing stands after '->'"),
        ("dog -> Dog", "line 1: 'dog' would be mapped to itself"),
        ("dog | hound, SKY -> sky", "line 1: 'SKY' would be mapped to itself"),
        ("sky", "line 1: 'sky' would be mapped to itself"),
        ("dog | hound, -> sky", "line 1: an alias is empty"),
        ("dog | -> sky", "line 1: an alias is empty"),
        ("dog | a | b -> sky", "line 1: more than one '|'"),
        ("dog | Dog -> sky", "line 1: 'Dog' is named twice"),
        ("dog\ncat\nDOG -> sky", "line 3: 'DOG' already stands in line 1"),
        ("dog | hound\nhound", "line 2: 'hound' already stands in line 1"),
        ("a {} dog", "line 1: braces"),
    ],
)
def test_errors_name_the_line(text, message):
    with pytest.raises(ConceptError, match=message.replace("|", r"\|")):
        parse_concepts(text, "object")


def test_preserved_concepts_need_no_mapping():
    assert parse_concepts("sky\ndog", "object", mapped=False) == [
        Concept("sky", "", "object"),
        Concept("dog", "", "object"),
    ]
    with pytest.raises(ConceptError, match="line 1.*no mapping"):
        parse_concepts("dog -> sky", "object", mapped=False)


def test_merge_keeps_order_and_types():
    merged = merge(parse_concepts("dog", "object"), parse_concepts("Claude Monet", "style"))
    assert [(c.target, c.type) for c in merged] == [("dog", "object"), ("Claude Monet", "style")]


def test_merge_refuses_a_phrase_of_two_concepts():
    with pytest.raises(ConceptError, match="'Hound'.*'dog' .object.*'Hound' .style"):
        merge(parse_concepts("dog | hound", "object"), parse_concepts("Hound", "style"))


def test_own_prompts_come_after_the_types():
    (concept,) = parse_concepts("dog", "object", ["one more {}", TEMPLATES["object"][0]])
    assert concept.prompts == (*TEMPLATES["object"], "one more {}")


@pytest.mark.parametrize("name", PAPER_LISTS)
def test_presets_are_valid_lists(name):
    merge([Concept(target, mapping, kind) for target, mapping, kind in PAPER_LISTS[name]])
