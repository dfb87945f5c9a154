"""What the model says of words and a concept's pictures: its error for each as the prompt (mace.concepts.aliases)."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from comfy import model_management
from comfy.utils import ProgressBar
from torch import Tensor

from ...mace.concepts.aliases import candidates, explained, neighbours, noise_errors, with_aliases
from ...mace.concepts.concept import Concept, merge, normalised, phrases_by_key
from ...mace.concepts.images import ConceptImages
from ...mace.concepts.subjects import parse_chosen, parse_names
from ...mace.method.tokens import fill
from ...mace.method.train import stream
from ...mace.pipeline.attention_loss import attend
from ...mace.pipeline.batches import chunks
from ..host.any_text import AnyText, text_to_draw_with
from ..host.gallery import BLOCK, Prompts
from ..host.kept.content import content_sha256, model_sha256
from ..host.kept.store import ContentStore
from ..host.model.forward import ModelDenoiser
from ..host.model.predict import noisy, predict_given
from ..host.networks import Batches
from ..host.progress import send_text
from ..host.text import TextEncoder
from .alias_choice import NEAR, Candidate, NamesSaid, NearWord, listed, near_words, told, told_of_names
from .alias_words import AliasSettings, kinds_of, longer_names_to_try, words_to_try

# Where the outline of a thing is decided: with less noise any words do, with more none help.
TIMESTEPS = (300, 500, 700)
# All words are tried in one draw, and those that explain most in all of them.
FIRST_TIMESTEP, LEAST_LEFT, SHARE_LEFT = 500, 16, 8
TOGETHER, ENCODED = 16, 256
SCORE_BYTES, KEPT_BYTES = 128, 16 << 20

# What words explain, by all that it depends on: what is chosen among them changes nothing of it.
_searches = ContentStore(KEPT_BYTES)


@dataclass(frozen=True)
class Found:
    """What the model said. images: with the concepts that have their aliases.  lines: one on each for the artist.
    neighbours: words next to the concepts, by their token embeddings, that are no aliases; before them those that the
    artist did not choose, and names of other things that hold an erased word.  candidates: of each concept, best first.
    near: the words that neighbours is chosen from.
    seconds: a prediction took, None where the model was not asked.  kinds: by normalised word that was tried, the type
    of the concept that it lies nearest to."""

    images: tuple[ConceptImages, ...]
    lines: list[str]
    neighbours: tuple[str, ...]
    candidates: tuple[tuple[Candidate, ...], ...] = ()
    near: tuple[NearWord, ...] = ()
    seconds: float | None = None
    kinds: Mapping[str, str] = field(default_factory=dict)

    @property
    def concepts(self) -> tuple[Concept, ...]:
        """The concepts with their aliases."""
        return tuple(entry.concept for entry in self.images)


@dataclass(frozen=True)
class Draw:
    """A noisy picture. image: its number.  timestep: of the model's schedule.  noise: [1, ch, h, w] on the CPU."""

    image: int
    timestep: int
    noise: Tensor


def draws_of(images: ConceptImages, pictures: int, seed: int) -> list[Draw]:
    """TIMESTEPS of the first `pictures` images, with noise of a stream of the concept's own."""
    generator = stream(seed, images.concept.target, "aliases")
    shape = (1, *images.latents.shape[1:])
    return [
        Draw(image, timestep, torch.randn(shape, generator=generator))
        for image in range(min(pictures, len(images)))
        for timestep in TIMESTEPS
    ]


def errors(
    model,
    encoder: TextEncoder | AnyText,
    images: ConceptImages,
    prompts: Sequence[str],
    draws: Sequence[Draw],
    step: Callable,
    at_once: Batches,
) -> Tensor:
    """Mean squared error of the predicted noise with each prompt in each draw, float64 [W, D] on the CPU.

    step(count): progress, in predictions.  at_once: of all concepts in a run. Raises the host's interrupt.
    """
    found = []
    # Of prompts of other families fewer are kept encoded at once.
    together = ENCODED if isinstance(encoder, TextEncoder) else BLOCK
    for start in range(0, len(prompts), together):
        part = list(prompts[start : start + together])
        if isinstance(encoder, TextEncoder):
            contexts = torch.cat([encoder.encoded(some).cpu() for some in chunks(part)])
            pooled = encoder.pooled(part).cpu() if encoder.has_pooled(model) else None
            found += _errors(model, images.latents, _by_rows(model, contexts, pooled), len(part), draws, step, at_once)
            continue
        given = Prompts(encoder)
        for some in [part] if given.fit_together(part) else [[prompt] for prompt in part]:
            found += _errors(model, images.latents, _by_prompts(model, given, some), len(some), draws, step, at_once)
    return torch.stack(found)


# predict(x, sigmas, rows): x_0 that a model predicts with the prompts of these rows, one for each latent in x.
Predict = Callable[[Tensor, Tensor, Tensor], Tensor]


def _by_rows(model, contexts: Tensor, pooled: Tensor | None) -> Predict:
    def run(x: Tensor, sigmas: Tensor, rows: Tensor) -> Tensor:
        own = None if pooled is None else pooled[rows].to(x.device)
        return ModelDenoiser(model).predict(x, sigmas, contexts[rows].to(x.device), own, attend)

    return run


def _by_prompts(model, given: Prompts, prompts: Sequence[str]) -> Predict:
    return lambda x, sigmas, rows: predict_given(
        model, x, sigmas, given.conditioning([prompts[int(row)] for row in rows])
    )


def _errors(model, latents, predicted: Predict, count: int, draws, step, at_once: Batches) -> list[Tensor]:
    device = model.load_device
    each = model.memory_required([1, *latents.shape[1:]])

    def run(part: Tensor) -> list[Tensor]:
        model_management.load_models_gpu([model], memory_required=len(part) * each)
        rows = []
        for draw in draws:
            model_management.throw_exception_if_processing_interrupted()
            clean = latents[draw.image : draw.image + 1].to(device, torch.float32)
            x, sigmas = noisy(model, clean, draw.noise.to(device), [draw.timestep])
            x, sigmas = (tensor.expand(len(part), *tensor.shape[1:]) for tensor in (x, sigmas))
            seen = predicted(x, sigmas, part)
            rows.append(noise_errors(seen, model.model.process_latent_in(clean), sigmas))
            step(len(part))
        return list(torch.stack(rows, dim=1))

    return at_once.run(torch.arange(count), run)


def explained_by(
    model,
    encoder: TextEncoder | AnyText,
    images: ConceptImages,
    words: Sequence[str],
    pictures: int,
    seed: int,
    step: Callable,
    at_once: Batches,
) -> dict[str, float]:
    """What each of the words explains of the concept's pictures, best first; of those that are tried in all draws.

    Kept by content. Raises ValueError, naming the concept, when its own words explain nothing.
    """
    if not words:
        return {}
    concept = images.concept
    key = _search_key(model, encoder, images, words, pictures, seed)
    known = _searches.get(key)
    if known is not None:
        return dict(known)
    draws = draws_of(images, pictures, seed)
    first = [draw for draw in draws if draw.timestep == FIRST_TIMESTEP][:1]

    def scores(tried: Sequence[str], used: Sequence[Draw]) -> dict[str, float]:
        prompts = [fill(images.template, concept.target), "", *(fill(images.template, word) for word in tried)]
        own, empty, *others = errors(model, encoder, images, prompts, used, step, at_once)
        try:
            values = explained(torch.stack(others), own, empty).tolist()
        except ValueError as error:
            raise ValueError(f"{concept.target}: {error}: look at them, or take more pictures") from error
        return dict(sorted(zip(tried, values, strict=True), key=lambda pair: -pair[1]))

    left = list(scores(words, first))[: left_of(len(words))]
    found = scores(left, draws)
    _searches.put(key, tuple(found.items()), SCORE_BYTES * len(found))
    return found


def _search_key(model, encoder, images: ConceptImages, words: Sequence[str], pictures: int, seed: int) -> str:
    target = images.concept.target
    about = (model_sha256(model), encoder.content(target, *words), images.latents, images.template)
    return content_sha256(*about, target, list(words), pictures, seed)


def unasked(
    model,
    encoder: TextEncoder | AnyText,
    images: Sequence[ConceptImages | None],
    words: Sequence[Sequence[str]],
    s: AliasSettings,
) -> list[bool]:
    """Of which concepts the model would be asked. images: None: not drawn yet.  words: to try, of each concept."""
    return [
        bool(own)
        and (entry is None or _searches.get(_search_key(model, encoder, entry, own, s.pictures, s.seed)) is None)
        for entry, own in zip(images, words, strict=True)
    ]


def left_of(count: int) -> int:
    """How many of so many words are tried in all draws."""
    return min(count, max(LEAST_LEFT, count // SHARE_LEFT))


def predictions_of(count: int, pictures: int) -> int:
    """How many predictions the model is asked for so many words, with the concept's own and none each time."""
    return count + 2 + (left_of(count) + 2) * pictures * len(TIMESTEPS) if count else 0


class _Asking:
    """What a model says of words, of each concept's pictures. asked: predictions so far, that took `seconds`."""

    def __init__(self, model, encoder: TextEncoder | AnyText, images: Sequence[ConceptImages], s: AliasSettings):
        self._model, self._encoder, self._images, self._s = model, encoder, images, s
        self._at_once = Batches(TOGETHER)
        self.asked, self.seconds = 0, 0.0

    def scores(self, words: Sequence[Sequence[str]], called: str) -> list[dict[str, float]]:
        """What words explain of each concept's pictures. called: what the words are, for the artist."""
        s = self._s
        counts = (
            predictions_of(len(own), min(s.pictures, len(entry)))
            for entry, own in zip(self._images, words, strict=True)
        )
        progress = ProgressBar(max(sum(counts), 1))

        def step(count: int) -> None:
            self.asked += count
            progress.update(count)

        found = []
        for entry, own in zip(self._images, words, strict=True):
            if own:
                send_text(f"{entry.concept.target}: {len(own)} {called}")
            start = time.perf_counter()
            asked = (self._model, self._encoder, entry, own, s.pictures, s.seed, step, self._at_once)
            found.append(explained_by(*asked))
            self.seconds += time.perf_counter() - start
        return found


def find_aliases(model, clip, images: Sequence[ConceptImages], s: AliasSettings, captions: Sequence[str] = ()) -> Found:
    """Ask the model which words are the concepts' aliases, and which are only near.

    captions: of a prior, see `longer_names_to_try`. Raises ValueError for pictures that a concept's own words do not
    explain, and for a CLIP of another model.
    """
    encoder = text_to_draw_with(clip, model)
    encoder.check_width(model)
    concepts, kept = [entry.concept for entry in images], parse_names(s.keep, "keep")
    tried = words_to_try(encoder, [(entry.concept, entry.template) for entry in images], s)
    asking = _Asking(model, encoder, images, s)
    scores = asking.scores(tried, "words")
    written = parse_chosen(s.chosen)
    staying = written.pop(NEAR, None)
    chosen = {normalised(target): words for target, words in written.items()}
    usual = with_aliases(concepts, scores, s.threshold, s.most, kept)
    found = merge(with_aliases(concepts, scores, s.threshold, s.most, kept, chosen) if chosen else usual)
    added = [new.aliases[len(old.aliases) :] for old, new in zip(concepts, found, strict=True)]
    lines = [
        told(concept, own, said, normalised(concept.target) in chosen)
        for concept, own, said in zip(concepts, added, scores, strict=True)
    ]
    targets = {normalised(concept.target) for concept in concepts}
    strange = [target for target in written if normalised(target) not in targets]
    if strange:
        lines.append(f"chosen names what is not in the list, and is passed over: {', '.join(strange)}")
    renamed = tuple(replace(entry, concept=concept) for entry, concept in zip(images, found, strict=True))
    # What the artist did not choose is drawn most alike, and erasing reaches it first.
    erased = phrases_by_key(found)
    left = [word for concept in usual for word in concept.aliases if normalised(word) not in erased]
    # What the model calls the same is not kept where it is only more than `most`.
    same = {word for own in scores for word, score in own.items() if score >= s.threshold}
    others = [[word for word in own if word not in same] for own in tried]
    longer = longer_names_to_try(encoder, [(entry.concept, entry.template) for entry in renamed], s, captions, tried)
    names = [NamesSaid(said, s.threshold) for said in asking.scores(longer, "longer names")]
    lines += [line for pair in zip(found, names, strict=True) if (line := told_of_names(*pair))]
    other = [name for own in names for name in own.others]
    near = near_words(
        [*left, *other, *neighbours(found, others, s.neighbours)], staying, {*erased, *map(normalised, kept)}
    )
    offered = tuple(
        listed(own, best.aliases, new, said)
        for own, best, new, said in zip(candidates(concepts, scores, kept), usual, added, scores, strict=True)
    )
    # What is kept from before took no prediction.
    each = asking.seconds / asking.asked if asking.asked else None
    stay = [own.word for own in near if own.stays]
    kinds = {**kinds_of(concepts, tried), **kinds_of(concepts, longer)}
    return Found(renamed, lines, tuple(dict.fromkeys([*kept, *stay])), offered, near, each, kinds)
