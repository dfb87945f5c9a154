"""The words that a model is asked of: the nearest to a concept by their token embeddings, or the artist's own."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice

import torch

from ...mace.concepts.aliases import nearest
from ...mace.concepts.captions import builtin_captions, longer_names, written_forms
from ...mace.concepts.concept import Concept, normalised, phrases_by_key
from ...mace.concepts.subjects import parse_names
from ...mace.method.tokens import fill
from ..host.any_text import AnyText
from ..host.text import TextEncoder

# Built-in captions that longer names are looked for in, where no prior's are given. All are read in half a second.
NAMES_FROM = 20_000


@dataclass(frozen=True)
class AliasSettings:
    """What the artist sets. words: to try, "" for the `nearest` of the vocabulary.  keep: words that stay as they are.
    threshold: what an alias must explain, 0..1.  most: aliases added to one concept.  pictures: looked at, of each.
    neighbours: words that are no aliases, to be kept, at most so many a concept.  chosen: for some concepts, the words
    that become aliases in place of what the model found (see `parse_chosen`); by NEAR, which near words stay.
    """

    words: str = ""
    keep: str = ""
    nearest: int = 300
    threshold: float = 0.5
    most: int = 8
    pictures: int = 4
    seed: int = 0
    neighbours: int = 8
    chosen: str = ""


def nearest_words(encoder: TextEncoder | AnyText, phrases: Sequence[str], count: int) -> list[list[str]]:
    """For each phrase, the whole words of the encoder's vocabulary that lie nearest to it by their token embeddings."""
    words, table = encoder.vocabulary()
    groups = [encoder.phrase_tokens(phrase) for phrase in phrases]
    # A phrase that the encoder knows nothing of has nothing near it.
    known = [group if group and table[group].any() else None for group in groups]
    places = {place for place in words if place < len(table)}
    kept = torch.tensor(sorted(places.union(*groups)))
    rows = [
        torch.searchsorted(kept, torch.tensor(group)).tolist() for group, own in zip(groups, known, strict=True) if own
    ]
    # Pieces of words are no candidates, though a phrase may be made of them.
    near = iter(nearest(table[kept], rows, count + len(kept) - len(places)))
    named = [[words.get(int(kept[row])) for row in next(near)] if own else [] for own in known]
    return [list(islice(filter(None, own), count)) for own in named]


def words_to_try(
    encoder: TextEncoder | AnyText, shown: Sequence[tuple[Concept, str]], s: AliasSettings
) -> list[list[str]]:
    """What the model is asked of. shown: each concept with the template of its pictures' prompt."""
    concepts, given = [concept for concept, _ in shown], parse_names(s.words, "words")
    named = {*phrases_by_key(concepts), *map(normalised, parse_names(s.keep, "keep"))}
    near = [given] * len(shown) if given else nearest_words(encoder, [own.target for own in concepts], s.nearest)
    return [
        encoder.fitting([word for word in words if normalised(word) not in named], partial(fill, template))
        for (_, template), words in zip(shown, near, strict=True)
    ]


def longer_names_to_try(
    encoder: TextEncoder | AnyText,
    shown: Sequence[tuple[Concept, str]],
    s: AliasSettings,
    captions: Sequence[str],
    tried: Sequence[Sequence[str]],
) -> list[list[str]]:
    """For each concept the names of other things that hold a phrase of it ("hot dog" of "dog"), at most `s.neighbours`.

    shown: see `words_to_try`.  captions: to look for them in, those of a prior, which would be taken out with them; the
    built-in ones where there are none.  tried: words that the model is asked of already. Each name once, and none that
    is erased or kept anyway.
    """
    phrases = phrases_by_key([concept for concept, _ in shown])
    named = longer_names(captions or builtin_captions(NAMES_FROM), phrases.values()) if s.neighbours else {}
    taken = written_forms([*phrases.values(), *parse_names(s.keep, "keep"), *chain.from_iterable(tried)])
    found = []
    for concept, template in shown:
        own = dict.fromkeys(
            name for phrase in concept.phrases for name in named.get(phrase, ()) if not taken & written_forms([name])
        )
        found.append(encoder.fitting(list(own), partial(fill, template))[: s.neighbours])
        taken |= written_forms(found[-1])
    return found


def kinds_of(concepts: Sequence[Concept], tried: Sequence[Sequence[str]]) -> dict[str, str]:
    """By normalised word, the type of the concept that it lies nearest to. tried: of each concept, nearest first."""
    places = [
        (place, word, own.type) for own, words in zip(concepts, tried, strict=True) for place, word in enumerate(words)
    ]
    return {normalised(word): kind for _, word, kind in sorted(places, key=lambda found: -found[0])}
