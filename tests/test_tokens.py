"""Token pairing on hand-made cases: what pairs with what, and what is never paired."""

import re

import pytest

from mace.method.tokens import PairingError, fill, locate, pair, pair_located


def tokenize(text):
    """A small stand-in for byte-pair encoding: words fall into pieces of four letters, the last piece is
    marked as a word's end, so that "cat" and the "cat" of "cats" are different tokens, as in CLIP."""
    tokens = []
    for word in re.findall(r"\w+|[^\w\s]", text.lower()):
        pieces = [word[i : i + 4] for i in range(0, len(word), 4)]
        tokens += pieces[:-1] + [pieces[-1] + "</w>"]
    return tokens


def words(template, phrase, positions):
    """The tokens at positions, with 0 as start and everything behind the text as end."""
    tokens = [token for token in tokenize(fill(template, phrase))]
    return ["<start>" if i == 0 else tokens[i - 1] if i <= len(tokens) else "<end>" for i in positions]


def check(template, target, mapping, window=77):
    """The pairing, after checking what holds for every one: unique, in the window, equal words, phrase left out."""
    pairing = pair(template, target, mapping, tokenize, window=window)
    assert len(pairing.target) == len(pairing.mapping)
    for positions in (pairing.target, pairing.mapping):
        assert len(set(positions)) == len(positions)
        assert all(0 <= i < window for i in positions)
    assert words(template, target, pairing.target) == words(template, mapping, pairing.mapping)
    assert not set(pairing.target) & set(pairing.phrase)
    return pairing


def test_middle():
    pairing = check("a photo of the {} at night", "dog", "sky")
    # start a phot o of the | dog | at nigh t ...
    assert pairing.target[:6] == (0, 1, 2, 3, 4, 5)
    assert pairing.phrase == (6,)
    assert pairing.target[6:] == tuple(range(7, 77)) == pairing.mapping[6:]


def test_start():
    pairing = check("{} on the mat", "dog", "sky")
    assert pairing.phrase == (1,)
    assert pairing.target == (0, *range(2, 77))


def test_end():
    pairing = check("the {}", "dog", "sky")
    assert pairing.phrase == (2,)
    # The first pair after the phrase is end-of-text with end-of-text.
    assert (pairing.target[2], pairing.mapping[2]) == (3, 3)


def test_longer_mapping_shifts_and_ends_with_the_window():
    pairing = check("the {} at night", "dog", "a person wearing clothes")
    span = len(tokenize("a person wearing clothes"))
    assert pairing.phrase == (2,)
    assert pairing.target[2:] == tuple(range(3, 77 - span + 1))
    assert pairing.mapping[2:] == tuple(range(2 + span, 77))


def test_shorter_mapping():
    pairing = check("the {} at night", "Arnold Schwarzenegger", "art")
    span = len(tokenize("Arnold Schwarzenegger"))
    assert pairing.phrase == tuple(range(2, 2 + span))
    assert pairing.target[-1] == 76
    assert pairing.mapping[-1] == 76 - span + 1


def test_twice():
    pairing = check("the {} and a {} too", "hot dog", "sky")
    assert words("the {} and a {} too", "hot dog", pairing.phrase) == ["hot</w>", "dog</w>"] * 2
    text = words("the {} and a {} too", "hot dog", pairing.target)
    assert text[:5] == ["<start>", "the</w>", "and</w>", "a</w>", "too</w>"]


def test_adjacent_twice():
    pairing = check("{} {}", "dog", "deep sky")
    assert pairing.phrase == (1, 2)
    assert pairing.target[0] == 0 and pairing.target[1] == 3


def test_phrase_that_melts_into_its_neighbours():
    # "cats" is one token in which the phrase "cat" cannot be told apart: it counts as the phrase.
    pairing = check("two {}s on a mat", "cat", "forest")
    assert words("two {}s on a mat", "cat", pairing.phrase) == ["cats</w>"]
    assert words("two {}s on a mat", "cat", pairing.target)[:5] == ["<start>", "two</w>", "on</w>", "a</w>", "mat</w>"]


def test_melting_on_the_left():
    template = "a super{} here"
    pairing = check(template, "cat", "sky blue thing")
    assert words(template, "cat", pairing.phrase) == ["rcat</w>"]
    assert words(template, "cat", pairing.target)[:5] == ["<start>", "a</w>", "supe", "here</w>", "<end>"]


def test_melting_between_two_phrases():
    template = "{}s and {}s"
    pairing = check(template, "cat", "sky thing")
    assert "and</w>" in words(template, "cat", pairing.target)
    assert words(template, "cat", pairing.phrase) == ["cats</w>", "cats</w>"]


def test_window_is_filled_exactly():
    template = " ".join(["a"] * 74) + " {}"
    pairing = check(template, "dog", "sky")
    assert pairing.phrase == (75,)
    assert pairing.target[-1] == 76


@pytest.mark.parametrize("target, mapping", [("hot dog", "sky"), ("sky", "hot dog")])
def test_too_long_is_an_error_on_either_side(target, mapping):
    template = " ".join(["a"] * 74) + " {}"
    with pytest.raises(PairingError, match="76 tokens.*takes 75.*shorten"):
        pair(template, target, mapping, tokenize)


def test_no_place_and_no_tokens():
    with pytest.raises(PairingError, match="no {}"):
        pair("a photo", "dog", "sky", tokenize)
    with pytest.raises(PairingError, match="no token"):
        pair("a {} photo", " ", "sky", tokenize)


def test_brackets():
    """Weighted parts are tokenised apart, so a phrase in brackets keeps its neighbours."""

    def split(prompt):
        return [part for part in re.split(r"\((.*?):[\d.]+\)", prompt) if part]

    located = locate("a photo of the ({}:1.3) at night", "hot dog", tokenize, split)
    assert located.tokens[slice(*located.spans[0])] == ("hot</w>", "dog</w>")
    located = locate("a photo of (the {} here:1.3) at night", "cat", tokenize, split)
    assert located.tokens[slice(*located.spans[0])] == ("cat</w>",)
    assert located.tokens[-2:] == ("nigh", "t</w>")
    pairing = pair("(the {}s:1.2) at night", "cat", "sky", tokenize, split)
    assert pairing.phrase == (2,)
    assert pairing.target[2] == 3 and pairing.mapping[2] == 3


def test_brackets_inside_the_phrase():
    def split(prompt):
        return [part for part in re.split(r"\((.*?):[\d.]+\)", prompt) if part]

    located = locate("the {} runs", "red (cat:1.4)", tokenize, split)
    assert located.tokens[slice(*located.spans[0])] == ("red</w>", "cat</w>")
    assert located.tokens[-1] == "runs</w>"


def test_own_words_join_with_the_mappings_last_token():
    pairing = pair("the {} by a {}", "hot dog", "big sky", tokenize)
    # start the | hot dog | by a | hot dog, and the same with the mapping's two.
    assert pairing.phrase == (2, 3, 6, 7) and pairing.own == (3, 3, 7, 7)
    joined = pairing.with_own_words()
    assert joined.target == pairing.target + (2, 3, 6, 7)
    assert joined.mapping == pairing.mapping + (3, 3, 7, 7)
    longer = pair("the {}", "dog", "a large green tree", tokenize)
    # "large" and "green" are two tokens each.
    assert longer.own == (7,)
    assert pair("{}", "airplane", "sky", tokenize).own == (1, 1)


@pytest.mark.parametrize(("leads", "rows"), [((3, 3), (12, 12)), ((-1, -1), (5, 5)), ((4, 1), (12, 9))])
def test_rows_of_another_layout(leads, rows):
    """Templates in front, rows that begin inside the text, and zeros in front of one of them."""
    f, g = (locate("one two {} end", phrase, tokenize) for phrase in ("dog", "cat"))
    pairing = pair_located(f, g, leads, rows)
    first = 2 + leads[0]
    assert pairing.phrase == (first,) and pairing.own == (2 + leads[1],)
    shift = leads[1] - leads[0]
    assert all(j - i == shift for i, j in zip(pairing.target, pairing.mapping, strict=True))
    wanted = set(range(max(0, -shift), min(rows[0], rows[1] - shift))) - {first}
    assert set(pairing.target) == wanted
