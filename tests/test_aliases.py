"""What words explain, which lie near, and which become aliases: by hand and by loops."""

import pytest
import torch

from mace.concepts.aliases import candidates, explained, nearest, neighbours, with_aliases
from mace.concepts.concept import Concept, ConceptError, merge


def test_explained_by_hand():
    own, empty = torch.tensor([1.0, 2.0]), torch.tensor([5.0, 8.0])
    errors = torch.tensor([[1.0, 2.0], [5.0, 8.0], [3.0, 5.0], [9.0, 9.0]])
    assert explained(errors, own, empty).tolist() == [1.0, 0.0, 0.5, -0.5]
    with pytest.raises(ValueError, match="not explained by the concept's own words"):
        explained(errors, empty, own)
    with pytest.raises(ValueError, match="not explained"):
        explained(errors, own * torch.nan, empty)


def test_nearest_by_loops():
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(40, 8, generator=generator)
    table[[3, 17]] = 0
    groups = [[5, 9], [20]]
    expected = []
    for tokens in groups:
        middle = [sum(float(table[token, k]) for token in tokens) / len(tokens) for k in range(8)]
        cosines = {}
        for row in range(40):
            if row not in (3, 17, *tokens):
                values = table[row].tolist()
                length = sum(v * v for v in values) ** 0.5 * sum(m * m for m in middle) ** 0.5
                cosines[row] = sum(v * m for v, m in zip(values, middle, strict=True)) / length
        expected.append(sorted(cosines, key=lambda row: -cosines[row]))
    assert nearest(table, groups, 10) == [own[:10] for own in expected] and nearest(table, groups, 100) == expected


DEER, DOG = Concept("deer", "street", "object", ("buck",)), Concept("dog", "open sky", "object")


def aliases(*scores, **more):
    settings = dict(threshold=0.5, most=8, keep=()) | more
    return [concept.aliases for concept in with_aliases((DEER, DOG), scores, **settings)]


def test_words_become_aliases_best_first_after_those_there_are():
    scores = {"hart": 0.8, "stag": 0.9, "horn": 0.49, "doe": 0.5}
    assert aliases(scores, {}) == [("buck", "stag", "hart", "doe"), ()]
    assert aliases(scores, {}, most=2) == [("buck", "stag", "hart"), ()]
    assert aliases(scores, {}, keep=["HART"], threshold=0.9) == [("buck", "stag"), ()]


def test_a_word_goes_to_the_concept_that_it_explains_best():
    assert aliases({"pet": 0.6, "animal": 0.8}, {"Pet": 0.7, "animal": 0.8}) == [("buck", "animal"), ("Pet",)]


def test_no_alias_is_in_the_list_or_in_a_mapping():
    found = {"dog": 0.9, "Buck": 0.9, "street": 0.9, "sky": 0.9, "open": 0.9, "skies": 0.9}
    assert aliases(found, {}) == [("buck", "skies"), ()]
    merge(with_aliases((DEER, DOG), (found, found), 0.5, 8, ()))
    with pytest.raises(ConceptError, match="names 'sky', itself to be erased"):
        merge([Concept("deer", "street", "object", ("sky",)), DOG])


def test_neighbours_are_near_and_no_aliases():
    """Nearest first, each once, without what is erased and what a mapping names."""
    (deer, dog) = with_aliases((DEER, DOG), ({"hart": 0.9, "elk": 0.4}, {}), 0.5, 8, ())
    assert deer.aliases == ("buck", "hart")
    words = ["hart", "elk", "sky", "Wolf", "buck", "moose"], ["wolf", "dog", "fox", "cat"]
    assert neighbours((deer, dog), words, 8) == ("elk", "Wolf", "moose", "fox", "cat")
    assert neighbours((deer, dog), words, 2) == ("elk", "Wolf", "fox")
    assert neighbours((deer, dog), words, 0) == ()


def test_candidates_are_of_one_concept_each_best_first():
    scores = {"pet": 0.2, "hart": 0.9, "Street": 0.8, "elk": -0.1}, {"PET": 0.3, "wolf": 0.1, "elk": -0.2}
    assert candidates((DEER, DOG), scores, ["wolf"]) == [{"hart": 0.9, "elk": -0.1}, {"PET": 0.3}]


def test_what_is_chosen_takes_the_place_of_what_was_found():
    """A chosen word is not found for another concept, and one of the list is passed over."""
    scores = {"hart": 0.9, "stag": 0.8}, {"hound": 0.9, "elk": 0.7}
    assert aliases(*scores, chosen={"deer": ["elk", "Stag", "buck"]}) == [("buck", "elk", "Stag"), ("hound",)]
    assert aliases(*scores, chosen={"dog": []}) == [("buck", "hart", "stag"), ()]
    assert aliases(*scores, chosen={}, most=1) == [("buck", "hart"), ("hound",)]
    with pytest.raises(ValueError, match="'Elk' is in keep and in chosen"):
        aliases(*scores, chosen={"deer": ["Elk"]}, keep=["elk"])
