"""Eq. 3's loss without ComfyUI: a small denoiser in torch alone, against the loss written out in float64."""

import pytest
import torch

from mace.concepts.concept import Concept
from mace.concepts.images import ConceptImages
from mace.method.loss import SQUARED
from mace.method.train import Example, TrainSettings, draws
from mace.pipeline.material import loss_function, material
from tests.torch_only import CHANNELS, HEADS, SHAPES, WIDTH, ReaderDenoiser, Readers, WordText

CONCEPTS = (Concept("dog", "sky", "object", ("puppy",)), Concept("wooden ship", "ground", "object"))


def shown(concept, seed):
    """Two pictures of a concept, and masks of 8x8 that halve into the latents' 4x4."""
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(2, CHANNELS, 4, 4, generator=generator)
    cells = torch.rand(2, 4, 4, generator=generator) > 0.5
    masks = cells.float().repeat_interleave(2, 1).repeat_interleave(2, 2)
    return ConceptImages(concept, latents, torch.zeros(2, 8, 8, 3, dtype=torch.uint8), "{}"), masks


def written_out(model, own, draw, pairs):
    """Eq. 3 of one draw of one concept, token by token, float64. pairs: its LoRA by projection, float64."""
    x, _ = model.noisy(own.latents[draw.image][None].double(), draw.noise[None].double(), [draw.timestep])
    pixels = x[0].flatten(1).T
    inside = own.masks[draw.image].double()[::2, ::2].flatten()
    total = 0.0
    for layer, query in model.queries.items():
        text = own.contexts[draw.prompt].double()
        keys, values = (
            text @ (model.module.weight(key).double() + (pairs[key][0] @ pairs[key][1] if key in pairs else 0)).T
            for key in (f"{layer}.to_k", f"{layer}.to_v")
        )
        heads = []
        by_head = (part.chunk(HEADS, dim=1) for part in (pixels @ query.double(), keys, values))
        for q, k, v in zip(*by_head, strict=True):
            scores = torch.exp(q @ k.T / q.shape[1] ** 0.5)
            attention = scores / scores.sum(dim=1, keepdim=True)
            for place in own.tokens[draw.prompt].nonzero()[:, 0].tolist():
                total = total + ((attention[:, place] * inside) ** 2).sum()
            heads.append(attention @ v)
        pixels = pixels + torch.cat(heads, dim=1) @ model.outs[layer].double()
    return total


@pytest.mark.parametrize("end_of_text", [False, True])
def test_the_loss_and_its_gradients_are_eq_3s(end_of_text):
    """Of two concepts side by side, each with a LoRA of its own."""
    model = ReaderDenoiser(Readers())
    images = [shown(concept, seed) for seed, concept in enumerate(CONCEPTS)]
    own = [material(WordText(), *each, end_of_text, False).clone() for each in images]
    drawn = [next(draws(Example("x", 2, len(m.contexts), (CHANNELS, 4, 4)), TrainSettings(seed=3))) for m in own]
    generator = torch.Generator().manual_seed(4)
    stacked = {}
    for key, rows in SHAPES.items():
        if key != "one.to_k":
            pair = (0.3 * torch.randn(2, *shape, generator=generator) for shape in ((rows, 2), (2, WIDTH)))
            stacked[key] = tuple(part.requires_grad_(True) for part in pair)
    found = loss_function(model, own, SQUARED)(drawn, stacked)
    found.sum().backward()
    for at in range(2):
        pairs = {
            key: [part[at].detach().double().requires_grad_(True) for part in both] for key, both in stacked.items()
        }
        expected = written_out(model, own[at], drawn[at], pairs)
        torch.testing.assert_close(found[at].double(), expected, rtol=1e-4, atol=0)
        expected.backward()
        for key, both in stacked.items():
            for part, exact in zip(both, pairs[key], strict=True):
                # No attention comes after the last layer's values.
                wanted = torch.zeros_like(part[at]).double() if exact.grad is None else exact.grad
                given = wanted * 0 if part.grad is None else part.grad[at].double()
                torch.testing.assert_close(given, wanted, rtol=0, atol=2e-4 * float(wanted.abs().max()) + 1e-12)
    assert set(own[0].phrase.sum(1).tolist()) == {1.0} and set(own[1].phrase.sum(1).tolist()) == {2.0}
    assert (own[0].tokens.sum(1) > 1).all() == end_of_text
