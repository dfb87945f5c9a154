"""One phrase however it is typed: every comparison of phrases sees text as the tokenizer does."""

import json
import unicodedata

import pytest
import torch

from mace.concepts.aliases import neighbours, with_aliases
from mace.concepts.captions import CaptionError, leave_out, read_captions
from mace.concepts.concept import Concept, ConceptError, merge, parse_concepts
from mace.concepts.images import ConceptImages, chain
from mace.concepts.lists import mapping_for
from mace.concepts.named import values_of
from mace.concepts.strengths import strengths_of
from mace.concepts.subjects import subjects
from mace.concepts.text import TextError, check_characters, composed, normalised
from mace.presets.table10 import object_mu

PICTURE = torch.zeros(1, 2, 2, 3)
COMPOSED = "caf\u00e9 noir"
SAME = [
    unicodedata.normalize("NFD", COMPOSED),
    "CAF\u00c9\xa0Noir",
    "\ufeffcaf\u00e9\u3000no\u200bir",
    "Cafe\u0301\t noir ",
]


@pytest.mark.parametrize("other", SAME)
def test_every_comparison_sees_one_phrase(other):
    (concept,) = parse_concepts(f"{COMPOSED} -> sky", "object")
    assert normalised(other) == normalised(COMPOSED) == normalised(normalised(other)) == COMPOSED
    assert parse_concepts(f"{other} -> sky", "object")[0].target == composed(other)
    assert strengths_of(f"{other} = 0.5", [concept]) == [0.5]
    assert values_of({COMPOSED: 2}, [Concept(other, "sky", "object")], lambda c: 1) == [2]
    assert leave_out([f"A {other}, on a table."], [COMPOSED])[1] and leave_out([f"A {COMPOSED}."], [other])[1]
    with pytest.raises(ConceptError, match="already stands in line 1"):
        parse_concepts(f"{COMPOSED}\n{other}", "object")
    with pytest.raises(ConceptError, match="in the list twice"):
        merge([concept], [Concept(other, "art", "style")])
    with pytest.raises(ConceptError, match="itself to be erased"):
        merge([concept, Concept("tea", f"a {other}", "object")])
    with pytest.raises(ValueError, match="images of two nodes"):
        chain([ConceptImages(Concept(t, "sky", "object"), PICTURE, PICTURE, "a {}") for t in (COMPOSED, other)])
    with pytest.raises(ValueError, match="to be kept"):
        subjects([concept], "", other)
    assert with_aliases([concept], [{other: 0.9}], 0.5, 3, [])[0].aliases == ()
    assert neighbours([concept], [[other]], 3) == ()


def test_letters_are_lowered_one_by_one_as_the_tokenizer_does():
    """Not folded: CLIP reads the two spellings of a German street as different words."""
    assert normalised("STRASSE") != normalised("Stra\u00dfe")
    assert normalised("\u03a3\u0391\u03a3") == "\u03c3\u03b1\u03c3"
    assert normalised("\u0130") == normalised("i\u0307")


def test_tables_are_looked_up_alike():
    assert mapping_for(" A\u200birplane", "object") == "ground"
    assert object_mu("Fr\u200bog ") == object_mu("frog") == 0.4


@pytest.mark.parametrize("bad, code", [("\ud83d", "D83D"), ("\udc00", "DC00"), ("\ue000", "E000"), ("\x00", "0000")])
def test_what_is_no_text_is_named_with_field_and_line(bad, code, tmp_path):
    with pytest.raises(TextError, match=rf"^keep: line 3: .*U\+{code}"):
        check_characters(f"a\r\nb\n{bad}c", "keep")
    with pytest.raises(ValueError, match=rf"^keep: line 2: .*U\+{code}"):
        subjects([Concept("dog", "sky", "object")], "", f"cat\n{bad}c")
    (tmp_path / "c.json").write_text(json.dumps(["A dog.", f"A {bad} cat."]), encoding="utf-8")
    with pytest.raises(CaptionError, match=rf"c.json, entry\[1\]: line 1: .*U\+{code}"):
        read_captions(tmp_path / "c.json")
    str(f"{bad!r}").encode()


def test_joined_letters_and_pictures_stay():
    """The joiner of emoji and of Persian, and what lies beyond the first plane."""
    for phrase in ("\U0001f469\u200d\U0001f680", "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\U00020000"):
        assert composed(phrase) == phrase
        check_characters(phrase, "concepts")
