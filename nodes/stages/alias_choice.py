"""What an artist chooses aliases from: the candidates of each concept, in words and as small pictures."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from comfy.utils import ProgressBar
from torch import Tensor

from ...mace.concepts.concept import Concept, normalised
from ...mace.concepts.images import ConceptImages
from ...mace.method.tokens import fill
from ..host.any_text import text_to_draw_with
from ..host.gallery import Gallery, Prompts
from ..host.model.family import usual_guidance
from ..host.model.unet import is_unet
from ..host.progress import duration, send_text

# Candidates that are offered for each concept, and words that a report names after what was found.
OFFERED, NEXT = 16, 3
# What names no concept in the chosen words but the near words that are to stay, as in the strengths all others.
NEAR = "*"
# Enough to see what a word draws. A UNet takes a sampler that is far along after few steps.
STEPS = 8
FEW_STEPS = {True: ("dpmpp_2m", "karras"), False: ("euler", "simple")}
# Pictures that are drawn together, and the side of a thumbnail in pixels.
TOGETHER, SIDE = 8, 128


@dataclass(frozen=True)
class Candidate:
    """A word that could be an alias. score: what it explains, None where it was not asked.  found: whether the model
    takes it.  chosen: whether it is an alias now."""

    word: str
    score: float | None
    found: bool
    chosen: bool


@dataclass(frozen=True)
class NearWord:
    """A word next to the concepts that is no alias. found: not written by the artist alone.  stays: whether it is
    given out to be kept."""

    word: str
    found: bool
    stays: bool


@dataclass(frozen=True)
class NamesSaid:
    """What names that hold a concept's word explain of its pictures. threshold: what an alias explains.

    A name holds the erased word, so that keeping it holds on to that: only what clearly draws another thing is kept.
    """

    scores: Mapping[str, float]
    threshold: float

    @property
    def others(self) -> list[str]:
        """Names of other things."""
        return [name for name, score in self.scores.items() if score < self.threshold / 2]

    @property
    def same(self) -> list[str]:
        """Names that go with the concept."""
        return [name for name in self.scores if name not in self.others]


def near_words(near: Sequence[str], staying: Sequence[str] | None, gone: Collection[str]) -> tuple[NearWord, ...]:
    """The words that are offered to be kept, and which of them are.

    near: as they were found, all of which stay where nothing was chosen.  staying: those that the artist chose, None
    for no choice.  gone: normalised phrases that are offered no more: what is erased, and what is kept anyway.
    """
    found, chosen = ({normalised(word): word for word in words} for words in (near, staying or ()))
    own = {key: word for key, word in chosen.items() if key not in found}
    return tuple(
        NearWord(word, key in found, staying is None or key in chosen)
        for key, word in (found | own).items()
        if key not in gone
    )


def listed(
    scores: Mapping[str, float], usual: Sequence[str], chosen: Sequence[str], told_of: Mapping[str, float]
) -> tuple[Candidate, ...]:
    """The best of a concept's candidates, and all words that were chosen.

    scores: what its candidates explain, best first.  told_of: what every word that was asked explains.
    usual: the aliases that the model found.
    """
    taken, asked = ({normalised(word) for word in words} for words in (chosen, scores))
    words = [word for place, word in enumerate(scores) if place < OFFERED or normalised(word) in taken]
    words += [word for word in chosen if normalised(word) not in asked]
    return tuple(Candidate(word, told_of.get(word), word in usual, normalised(word) in taken) for word in words)


def told(concept: Concept, added: Sequence[str], scores: Mapping[str, float], chosen: bool) -> str:
    """What becomes an alias of a concept, and the words that came next."""

    known = {normalised(word): score for word, score in scores.items()}
    taken = set(map(normalised, added))

    def said(words: Sequence[str]) -> str:
        return ", ".join(f"{word} {known[key]:.0%}" if (key := normalised(word)) in known else word for word in words)

    others = [word for word in scores if normalised(word) not in taken][:NEXT]
    after = f"; then {said(others)}" if others else ""
    return f"{concept.target}: {said(added) or 'nothing'}{' (chosen)' if chosen else ''}{after}"


def told_of_names(concept: Concept, said: NamesSaid) -> str:
    """Which names that hold a concept's word are of another thing, and which go with it; "" of none."""
    parts = [
        f"{', '.join(f'{name} {said.scores[name]:.0%}' for name in names)} {what}"
        for names, what in ((said.others, "another thing"), (said.same, "erased with it"))
        if names
    ]
    return f"{concept.target}, longer names: {'; '.join(parts)}" if parts else ""


def draw_candidates(
    model,
    clip,
    vae,
    images: Sequence[ConceptImages],
    offered: Sequence[Sequence[Candidate]],
    count: int,
    prediction: float | None,
) -> tuple[list[dict[str, Tensor]], int]:
    """(for each concept a small picture [h, w, 3] in 0..1 of the `count` best of its candidates, by word; how many of
    them were drawn now).

    Drawn as the concept's pictures were, with one noise for all words, so that what differs is the word's; in few steps
    and kept by content. Words further down are not drawn: they draw something else. prediction: seconds that one took,
    None where it is not known. Raises the host's interrupt.
    """
    sampler, scheduler = FEW_STEPS[is_unet(model)]
    how = {"steps": STEPS, "cfg": usual_guidance(model), "sampler_name": sampler, "scheduler": scheduler}
    words = [[candidate.word for candidate in own[:count]] for own in offered]
    total = sum(map(len, words))
    # Where nothing was asked, the pictures are as likely kept as not.
    left = "" if prediction is None else f", about {duration(2 * total * STEPS * prediction)} left"
    send_text(f"{total} small pictures{left}")
    height, width = images[0].pictures.shape[1:3]
    settings = {"width": width, "height": height, **how}
    progress = ProgressBar(max(total * STEPS, 1))
    prompts = Prompts(text_to_draw_with(clip, model))
    gallery = Gallery(model, prompts, vae, None, settings, TOGETHER, progress, "candidates")
    found = []
    for entry, own in zip(images, words, strict=True):
        drawn = gallery.draw([(fill(entry.template, word), 0) for word in own])
        found.append({word: small(picture) for word, picture in zip(own, drawn, strict=True)})
    return found, gallery.drawn


def small(picture: Tensor) -> Tensor:
    """A picture uint8 [H, W, 3] as one of at most SIDE pixels, in 0..1."""
    share = min(1.0, SIDE / max(picture.shape[:2]))
    size = [max(1, round(side * share)) for side in picture.shape[:2]]
    pixels = picture.float().movedim(-1, 0)[None] / 255
    return torch.nn.functional.interpolate(pixels, size, mode="area")[0].movedim(0, -1)
