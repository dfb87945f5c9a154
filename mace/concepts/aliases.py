"""Other words for a concept, told by the model itself: words that explain the concept's pictures as its own words do.

A word's error is that of the noise the model predicts in noisy pictures of the concept with the word as its prompt, as
a diffusion model used as a classifier reads it (Li et al. 2023, arXiv 2303.16203). How near words lie to each other in
the text encoder plays no part: an alias is what draws the same thing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from types import MappingProxyType

import torch
from torch import Tensor

from .concept import Concept, normalised, phrases_by_key


def explained(errors: Tensor, own: Tensor, empty: Tensor) -> Tensor:
    """What each word explains of what the concept's own words explain, [W]: 1 as much, 0 no more than no words.

    (sum empty - sum errors) / (sum empty - sum own) over the same draws of picture, timestep and noise. errors: [W, D]
    of each word in each draw.  own, empty: [D] of the concept's own prompt and of the empty one. Raises ValueError when
    the concept's own words explain nothing.
    """
    whole = empty.double().sum() - own.double().sum()
    if not whole > 0:
        raise ValueError("the pictures are not explained by the concept's own words better than by no words at all")
    return (empty.double().sum() - errors.double().sum(dim=1)) / whole


def noise_errors(seen: Tensor, clean: Tensor, sigmas: Tensor) -> Tensor:
    """Mean squared error of the predicted noise, float64 [B] on the CPU.

    seen: the pictures [B, ...] predicted at `sigmas` [B] (or [B, 1, ...]).  clean: what they are, one for all or each.
    What is wrong in a picture is sigma times what is wrong in its noise.
    """
    wrong = (seen.float() - clean) / sigmas.view(-1, *[1] * (seen.dim() - 1))
    return wrong.cpu().double().square().flatten(1).mean(dim=1)


def nearest(table: Tensor, groups: Sequence[Sequence[int]], count: int) -> list[list[int]]:
    """For each group of rows of a table of token embeddings [V, d], the rows by falling cosine to the group's mean.

    At most `count` each, without the group's own; rows of zeros, which mean nothing, are no candidates.
    """
    rows = table.float()
    lengths = rows.norm(dim=1)
    meaningless = lengths == 0
    lengths.clamp_min_(torch.finfo(rows.dtype).tiny)
    found = []
    for group in groups:
        cosines = (rows @ rows[list(group)].mean(dim=0)) / lengths
        cosines[meaningless] = -torch.inf
        cosines[list(group)] = -torch.inf
        best = cosines.topk(min(count, int((cosines > -torch.inf).sum())))
        found.append(best.indices.tolist())
    return found


def candidates(
    concepts: Sequence[Concept], scores: Sequence[Mapping[str, float]], keep: Sequence[str]
) -> list[dict[str, float]]:
    """For each concept the words that could be its aliases, with what they explain, best first.

    scores: what each word explains, for each concept.  keep: words that stay as they are. A word is a candidate of the
    one concept that it explains best; no word of the list, of `keep`, or one that a mapping names is a candidate.
    """
    taken = set(phrases_by_key(concepts)) | set(map(normalised, keep))
    mappings = [f" {normalised(concept.mapping)} " for concept in concepts]
    owner: dict[str, tuple[float, int]] = {}
    for place, own in enumerate(scores):
        for word, score in own.items():
            key = normalised(word)
            free = key not in taken and not any(f" {key} " in mapping for mapping in mappings)
            if free and score > owner.get(key, (-torch.inf, 0))[0]:
                owner[key] = (score, place)
    return [
        {
            word: score
            for word, score in sorted(own.items(), key=lambda pair: -pair[1])
            if owner.get(normalised(word), (0, -1))[1] == place
        }
        for place, own in enumerate(scores)
    ]


def with_aliases(
    concepts: Sequence[Concept],
    scores: Sequence[Mapping[str, float]],
    threshold: float,
    most: int,
    keep: Sequence[str],
    chosen: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> tuple[Concept, ...]:
    """The concepts with further aliases: the `candidates` that reach `threshold`, at most `most` each, best first.

    chosen: for some concepts, by their normalised target, the words to take in place of these, whatever they explain;
    those of the list are passed over. Raises ValueError for a chosen word that is in `keep`.
    """
    listed, kept = phrases_by_key(concepts), set(map(normalised, keep))
    for word in (word for words in chosen.values() for word in words):
        if normalised(word) in kept:
            raise ValueError(f"{word!r} is in keep and in chosen: take it out of one of them")
    free = candidates(concepts, scores, [*keep, *(word for words in chosen.values() for word in words)])
    result = []
    for concept, own in zip(concepts, free, strict=True):
        found = [word for word, score in own.items() if score >= threshold][:most]
        named = chosen.get(normalised(concept.target))
        if named is not None:
            found = [word for word in named if normalised(word) not in listed]
        result.append(replace(concept, aliases=(*concept.aliases, *found)))
    return tuple(result)


def neighbours(concepts: Sequence[Concept], words: Sequence[Sequence[str]], most: int) -> tuple[str, ...]:
    """The words next to the concepts that are no aliases of them: what erasing reaches first, and is to stay.

    concepts: with the aliases that the model told.  words: that were tried, nearest first, for each concept.  At most
    `most` a concept; each word once, and none that a mapping names.
    """
    taken = phrases_by_key(concepts)
    named = [f" {normalised(concept.mapping)} " for concept in concepts]
    found: dict[str, str] = {}
    for own in words:
        free = (
            word
            for word in own
            if normalised(word) not in taken and not any(f" {normalised(word)} " in mapping for mapping in named)
        )
        for word in islice(free, most):
            found.setdefault(normalised(word), word)
    return tuple(found.values())
