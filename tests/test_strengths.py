"""Strengths as an artist writes them."""

import pytest

from mace.concepts.concept import ConceptError, parse_concepts
from mace.concepts.strengths import parse_strengths, strange_lines, strengths_of

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


def test_what_is_not_in_the_list_is_passed_over_and_said():
    text = "Cat = 0.5\ndog = 0.25\n* = 0.75\nhorse = 1"
    assert strengths_of(text, CONCEPTS) == [0.25, 0.75, 0.75]
    said = ["strengths names what is not in the list, and is passed over: cat, horse"]
    assert strange_lines(text, CONCEPTS) == said and strange_lines("* = 0\nDog = 1", CONCEPTS) == []
