"""Synthetic text embeddings, pairings and weights at the size of SD1.5, for the benchmarks."""

import random

import torch

from mace.method.moments import Gram
from mace.method.tokens import Pairing

WIDTH, WINDOW = 768, 77
# d_out of SD1.5's 16 cross-attention layers; each has to_k and to_v.
ROWS = [rows for rows, layers in ((320, 5), (640, 5), (1280, 6)) for _ in range(2 * layers)]
BATCH = 16  # prompts encoded together, as the nodes do
CPU = torch.device("cpu")
COCO_CAPTIONS = 616_767


def embed(generator, prompts):
    """Synthetic embeddings [prompts, 77, 768], float32, of CLIP's scale: every token is about 27 long, the start token
    is always the same, words share a large common part and their prompt's part."""

    def vectors(*shape, length, source=generator):
        return torch.randn(*shape, WIDTH, generator=source) * (length / WIDTH**0.5)

    start, common = vectors(2, length=1.0, source=torch.Generator().manual_seed(0))
    tokens = vectors(prompts, WINDOW, length=15.0) + vectors(prompts, 1, length=8.0) + 20.0 * common
    tokens[:, 0] = 28.0 * start
    return tokens


def make_concept(seed, prompts):
    """A concept's batches: a phrase of 1 to 3 tokens somewhere in each prompt, its mapping 1 to 3 tokens long."""
    generator, choose = torch.Generator().manual_seed(seed + 1), random.Random(seed)
    targets, mappings = embed(generator, prompts), embed(generator, prompts)
    pairings = []
    for prompt in range(prompts):
        at, own, other = choose.randint(1, 20), choose.randint(1, 3), choose.randint(1, 3)
        after = range(WINDOW - at - max(own, other))
        f = (*range(at), *(at + own + k for k in after))
        g = (*range(at), *(at + other + k for k in after))
        pairings.append(Pairing(f, g, tuple(range(at, at + own))))
        change = torch.randn(len(f), WIDTH, generator=generator) * (5.0 / WIDTH**0.5)
        change[0] = 0.0
        mappings[prompt, list(g)] = targets[prompt, list(f)] + change
    parts = [slice(i, i + BATCH) for i in range(0, prompts, BATCH)]
    return [(targets[part], mappings[part], pairings[part]) for part in parts]


def make_model():
    """The weights of the 32 matrices, float32, and a prior P [768, 768], float64, at the scale of COCO's captions."""
    generator, captions = torch.Generator().manual_seed(7), 64
    weights = [torch.randn(rows, WIDTH, generator=generator) / WIDTH**0.5 for rows in ROWS]
    gram = Gram(WIDTH, CPU)
    gram.add(embed(generator, captions))
    return weights, gram.matrix * (COCO_CAPTIONS / captions)
