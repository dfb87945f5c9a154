"""What the model says of words and a concept's pictures: its error for each word as the prompt (see mace.aliases)."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from comfy import model_management
from torch import Tensor

from ..mace.aliases import explained, nearest
from ..mace.concept import normalised, uncommented
from ..mace.images import ConceptImages
from ..mace.tokens import fill
from ..mace.train import stream
from .forward import extra_inputs, noisy
from .networks import in_batches
from .text import TextEncoder, chunks

# Where the outline of a thing is decided: with less noise any words do, with more none help.
TIMESTEPS = (300, 500, 700)
# All words are tried in one draw, and those that explain most in all of them.
FIRST_TIMESTEP, LEAST_LEFT, SHARE_LEFT = 500, 16, 8
TOGETHER, ENCODED = 16, 256
WORD = re.compile(r"[a-z]{3,}</w>")


@dataclass(frozen=True)
class Draw:
    """A noisy picture. image: its number.  timestep: of the model's schedule.  noise: [1, ch, h, w] on the CPU."""

    image: int
    timestep: int
    noise: Tensor


def words_of(text: str) -> list[str]:
    """Words and phrases of lines and commas, each once; text after ` #` is a comment."""
    parts = [part for line in text.splitlines() for part in uncommented(line).split(",")]
    return list({normalised(part): " ".join(part.split()) for part in parts if part.strip()}.values())


def nearest_words(encoder: TextEncoder, phrase: str, count: int) -> list[str]:
    """The whole words of the encoder's vocabulary that lie nearest to a phrase by their token embeddings."""
    tokens = [token for token in encoder.tokenize(phrase) if isinstance(token, int)]
    vocabulary, table = encoder.vocabulary()
    if not tokens or not table[tokens].any():
        return []
    places = [place for place, word in vocabulary.items() if WORD.fullmatch(word) and place < len(table)]
    kept = torch.tensor(sorted({*places, *tokens}))
    rows = nearest(table[kept], torch.searchsorted(kept, torch.tensor(tokens)).tolist(), count)
    return [vocabulary[int(kept[row])].removesuffix("</w>") for row in rows]


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
    model, encoder: TextEncoder, images: ConceptImages, prompts: Sequence[str], draws: Sequence[Draw], step: Callable
) -> Tensor:
    """Mean squared error of the predicted noise with each prompt in each draw, float64 [W, D] on the CPU.

    step(count): progress, in predictions. Raises the host's interrupt.
    """
    found = []
    for start in range(0, len(prompts), ENCODED):
        part = list(prompts[start : start + ENCODED])
        contexts = torch.cat([encoder.encoded(some).cpu() for some in chunks(part)])
        pooled = encoder.pooled(part).cpu() if encoder.has_pooled(model) else None
        found += _errors(model, images.latents, contexts, pooled, draws, step)
    return torch.stack(found)


def _errors(model, latents, contexts, pooled, draws, step) -> list[Tensor]:
    device = model.load_device
    each = model.memory_required([1, *latents.shape[1:]])

    def run(part: Tensor) -> list[Tensor]:
        model_management.load_models_gpu([model], memory_required=len(part) * each)
        rows = []
        for draw in draws:
            model_management.throw_exception_if_processing_interrupted()
            clean = latents[draw.image : draw.image + 1].to(device, torch.float32)
            x, sigmas = noisy(model, clean, draw.noise.to(device), torch.tensor([draw.timestep]))
            same = [tensor.expand(len(part), *tensor.shape[1:]) for tensor in (x, sigmas, clean)]
            extra = extra_inputs(model, same[2], None if pooled is None else pooled[part].to(device))
            options = model.model_options["transformer_options"].copy()
            seen = model.model.apply_model(
                same[0], same[1], c_crossattn=contexts[part].to(device), transformer_options=options, **extra
            )
            # What is wrong in the picture is sigma times what is wrong in the noise.
            wrong = (seen.float() - model.model.process_latent_in(clean)) / sigmas.view(-1, 1, 1, 1)
            rows.append(wrong.double().square().flatten(1).mean(dim=1).cpu())
            step(len(part))
        return list(torch.stack(rows, dim=1))

    return in_batches(torch.arange(len(contexts)), TOGETHER, run)


def explained_by(
    model, encoder: TextEncoder, images: ConceptImages, words: Sequence[str], pictures: int, seed: int, step: Callable
) -> dict[str, float]:
    """What each of the words explains of the concept's pictures, best first; of those that are tried in all draws.

    Raises ValueError, naming the concept, when its own words explain nothing.
    """
    concept, draws = images.concept, draws_of(images, pictures, seed)
    first = [draw for draw in draws if draw.timestep == FIRST_TIMESTEP][:1]

    def scores(tried: Sequence[str], used: Sequence[Draw]) -> dict[str, float]:
        prompts = [fill(images.template, concept.target), "", *(fill(images.template, word) for word in tried)]
        own, empty, *others = errors(model, encoder, images, prompts, used, step)
        try:
            values = explained(torch.stack(others), own, empty).tolist()
        except ValueError as error:
            raise ValueError(f"{concept.target}: {error}: look at them, or take more pictures") from error
        return dict(sorted(zip(tried, values, strict=True), key=lambda pair: -pair[1]))

    if not words:
        return {}
    left = list(scores(words, first))[: left_of(len(words))]
    return scores(left, draws)


def left_of(count: int) -> int:
    """How many of so many words are tried in all draws."""
    return min(count, max(LEAST_LEFT, count // SHARE_LEFT))
