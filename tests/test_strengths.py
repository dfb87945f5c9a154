"""Strengths as an artist writes them."""

import pytest

from mace.concepts.concept import ConceptError, parse_concepts
from mace.concepts.strengths import parse_strengths, strengths_of

CONCEPTS = parse_concepts("dog\nhot air balloon\nship", "object")


def test_nothing_said_means_one():
    assert strengths_of("", CONCEPTS) == [1.0, 1.0, 1.0]


def test_single_concepts_comments_and_the_rest():
    text = "Dog = 0.5  # half\n\n  hot  air   balloon=0\n* = 0.25"
    assert strengths_of(text, CONCEPTS) == [0.5, 0.0, 0.25]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dog", "line 1: 'dog' is not a concept and a strength"),
        ("ship = 1\ndog = 1.5", "line 2: 'dog = 1.5'"),
        ("dog = nan", "line 1"),
        ("dog = -0.1", "line 1"),
        ("= 0.5", "line 1"),
        ("dog = 1\n DOG = 0", "line 2: 'DOG' has a strength already"),
    ],
)
def test_bad_lines_are_named(text, message):
    with pytest.raises(ConceptError, match=message):
        parse_strengths(text)


def test_an_unknown_concept_is_named_with_what_there_is():
    with pytest.raises(ConceptError, match=r"no concept 'cat' in the list \(dog, hot air balloon, ship\)"):
        strengths_of("cat = 0.5", CONCEPTS)
