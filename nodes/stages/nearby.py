"""How far an edit moved the words that are no concepts: those next to the concepts, and what a prior preserves."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from comfy import model_management
from torch import Tensor

from ...mace.concepts.aliases import neighbours
from ...mace.concepts.concept import Concept, normalised, phrases_by_key
from ...mace.concepts.strengths import with_strength
from ...mace.formats.lora_set import LoraSet
from ...mace.measure.nearby import in_words, moved
from ...mace.method.prior import Prior
from ...mace.method.refine import Refinement
from ...mace.method.tokens import fill
from ...mace.pipeline.batches import chunks
from ...mace.pipeline.store import LastResult
from ..host.any_text import AnyText
from ..host.pipeline import ModelWeights, text_and_weights
from ..host.port_text import PortText
from ..host.text import TextEncoder
from .alias_words import nearest_words

# Words that are asked for, those of the prior among them, and those that are named.
ASKED, PRESERVED, NAMED = 12, 6, 5
PROMPT = "a photo of the {}"

# Words next to a list, which stay when a strength moves.
_near = LastResult()


def words_nearby(text: TextEncoder | PortText, concepts: Sequence[Concept], prior: Prior | None) -> list[str]:
    """What a prior preserves, then the words next to each concept in turn, at most ASKED."""
    key = (text.identity, tuple(concepts))
    near = _near.get(text.module, key)
    if near is None:
        # Of a concept's own aliases none counts, so that some more are looked at.
        most = -(-ASKED // len(concepts))
        encoder = text if isinstance(text, TextEncoder) else AnyText(text.clip)
        lists = nearest_words(encoder, [own.target for own in concepts[:ASKED]], 4 * ASKED)
        near = neighbours(concepts, [*lists, *[[]] * (len(concepts) - len(lists))], most)
        _near.put(text.module, key, near)
    erased = phrases_by_key(concepts)
    preserved = [word for word in (prior.preserved if prior else ()) if normalised(word) not in erased][:PRESERVED]
    every = {normalised(word): word for word in reversed([*preserved, *near])}
    return text.fitting(list(reversed(every.values())), lambda word: fill(PROMPT, word))[:ASKED]


def moved_lines(model, edited, clip, concepts: Sequence[Concept], prior: Prior | None) -> list[str]:
    """Lines for the artist on how far such words moved between two MODELs, most first: those nearby, and those that the
    prior preserves; none without words.

    See `mace.measure.nearby`. `edited` is a clone of `model` with other patches. Of models other than UNets it is told
    where CLIP is among the text encoders, since others' vocabularies take gigabytes to look through, and where the
    model reads one text, in as many rows whatever the prompt.
    """
    text, weights = text_and_weights(model, clip)
    if isinstance(text, PortText) and (weights.others or not _has_clip(clip)):
        return []
    words = words_nearby(text, concepts, prior)
    read = _read(text, [*(fill(PROMPT, word) for word in words), ""]) if words else None
    if read is None:
        return []
    shares = moved(read[:-1], read[-1], _projections(weights, edited)).tolist()
    preserved = set(map(normalised, prior.preserved if prior else ())) - set(phrases_by_key(concepts))
    near, kept = [], []
    for word, share in sorted(zip(words, shares, strict=True), key=lambda pair: -pair[1]):
        (kept if normalised(word) in preserved else near).append((word, share))
    lines = [f"of {len(near)} words nearby, moved most: {_told(near[:NAMED])}"] if near else []
    if kept:
        some = f" ({len(kept)} of {len(preserved)})" if len(kept) < len(preserved) else ""
        lines.append(f"kept{some}: {_told(kept)}")
    return lines


def _told(ranked: Sequence[tuple[str, float]]) -> str:
    # One word of how far for all that moved as far.
    by_extent: dict[str, list[str]] = {}
    for word, share in ranked:
        by_extent.setdefault(in_words(share), []).append(word)
    return ", ".join(f"{' and '.join(names)} {extent}" for extent, names in by_extent.items())


def fused_lines(
    model, fused, clip, loras: LoraSet, refinement: Refinement | None, prior: Prior | None, listed: Sequence
) -> list[str]:
    """`moved_lines` of a fusion; none where it left the MODEL as it was. listed: (target, strength) of its concepts."""
    recipe = loras.recipe if refinement is None else refinement
    concepts = (loras if refinement is None else refinement).concepts
    erased = with_strength(concepts, [strength for _, strength in listed])
    return moved_lines(model, fused, clip, erased, prior or recipe.prior) if erased and recipe.strength else []


def _has_clip(clip) -> bool:
    return any(getattr(clip.cond_stage_model, name, None) is not None for name in ("clip_l", "clip_g"))


def _read(text: TextEncoder | PortText, prompts: Sequence[str]) -> Tensor | None:
    """What a model reads of prompts, [B, N, d] float32 on the CPU; None where some have more rows than others."""
    if isinstance(text, TextEncoder):
        return torch.cat([text.encoded(part).cpu() for part in chunks(prompts)]).float()
    # Rows that do not count are not read.
    read = [(own.values * own.counted[:, None]).float().cpu() for own in (own.rows for own in text.features(prompts))]
    return torch.stack(read) if len(set(map(len, read))) == 1 else None


def _projections(weights: ModelWeights, edited) -> Iterator[tuple[Tensor, Tensor]]:
    """Each weight that reads tokens, as it was and of the edited MODEL."""
    keys = weights.tokens()
    for pair in zip(*(own.effective(keys) for own in (weights, replace(weights, model=edited))), strict=True):
        model_management.throw_exception_if_processing_interrupted()
        yield pair
