"""A small host of the pipeline in torch alone: a text encoder of word embeddings, and layers that read it.

Text is read word by word: an embedding each, and what the words before it add through one causal attention, so that a
phrase changes the words behind it. Seeded; nothing is trained.
"""

import copy
import re
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mace.method.moments import Gram, concept_moments
from mace.method.prior import PROBE_PROMPTS, probe
from mace.method.tokens import fill, pair
from mace.pipeline.host import Attention

WINDOW, WIDTH, HEADS, CHANNELS = 28, 12, 2, 4
CPU = torch.device("cpu")
START, END = "<start>", "<end>"
SHAPES = {f"{block}.{name}": rows for block, rows in (("one", 6), ("two", 16)) for name in ("to_k", "to_v")}


def words_of(text: str) -> list[str]:
    """The words and marks of a text."""
    return re.findall(r"\w+|[^\w\s]", text.lower())


class WordEncoder(nn.Module):
    """Embeddings [B, WINDOW, WIDTH] float32 of prompts; end-of-text fills the window."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
        self.places = nn.Parameter(0.3 * draw(WINDOW, WIDTH), requires_grad=False)
        self.query, self.key, self.value = (
            nn.Parameter(draw(WIDTH, WIDTH) / WIDTH**0.5, requires_grad=False) for _ in range(3)
        )

    def forward(self, prompts: list[str]) -> Tensor:
        rows = [[START, *words_of(prompt), END] for prompt in prompts]
        assert max(map(len, rows)) <= WINDOW
        rows = [row + [END] * (WINDOW - len(row)) for row in rows]
        x = torch.stack([torch.stack([self._word(word) for word in row]) for row in rows]) + self.places
        scores = (x @ self.query) @ (x @ self.key).mT / WIDTH**0.5
        ahead = torch.ones(WINDOW, WINDOW, dtype=torch.bool).triu(1)
        return x + torch.softmax(scores.masked_fill(ahead, -torch.inf), dim=-1) @ (x @ self.value)

    @staticmethod
    def _word(word: str) -> Tensor:
        seed = int.from_bytes(word.encode()) % (2**63)
        return torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed))


class WordText:
    """`mace.pipeline.host.Embeddings` of a WordEncoder."""

    at_ports, clip_layer, width, window, identity, other_widths = False, None, WIDTH, WINDOW, (), ()
    gather = staticmethod(tuple)

    def __init__(self):
        self.module = WordEncoder()
        self.fingerprint = probe(self.module(list(PROBE_PROMPTS)))

    def fitting(self, texts, as_prompt):
        return [text for text in texts if len(words_of(as_prompt(text))) <= WINDOW - 2]

    def gram(self, prompts, step):
        total = Gram(WIDTH, torch.device("cpu"))
        for prompt in prompts:
            total.add(self.module([prompt]))
            step(1)
        return total.matrix, None

    def moments(self, concept, step, pooled=False, own_words=False):
        assert not pooled and not own_words
        return concept_moments((self._read(concept, *reading, step) for reading in concept.readings), WIDTH, CPU)

    def pair(self, template, target, mapping):
        return pair(template, target, mapping, words_of, window=WINDOW)

    def length(self, prompt):
        return len(words_of(prompt))

    def encoded(self, prompts):
        return self.module(prompts)

    def _read(self, concept, template, phrase, step):
        step(1)
        f, g = (self.module([fill(template, words)]) for words in (phrase, concept.mapping))
        return f, g, [self.pair(template, phrase, concept.mapping)]


class Readers(nn.ModuleDict):
    """The key and value projections of two cross-attentions."""

    def __init__(self):
        super().__init__()
        for seed, (name, rows) in enumerate(SHAPES.items()):
            layer = nn.Linear(WIDTH, rows, bias=False).requires_grad_(False)
            layer.weight.copy_(torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(seed)))
            self[name.replace(".", "_")] = layer

    def weight(self, key: str) -> Tensor:
        """The weight of a key of SHAPES."""
        return self[key.replace(".", "_")].weight


@dataclass(frozen=True)
class ReaderWeights:
    """`mace.pipeline.host.Weights` of Readers."""

    module: Readers = field(default_factory=Readers)
    refinement: object = None
    records: tuple = ()
    device, pooled, others, left = CPU, (), (), ()

    @property
    def values(self):
        return self.tokens("values")

    def tokens(self, projections="both"):
        letters = {"both": "kv", "keys": "k", "values": "v"}[projections]
        return tuple(key for key in SHAPES if key[-1] in letters)

    def effective(self, keys):
        return (self.module.weight(key).clone() for key in keys)

    def edited(self, edit, step):
        module = copy.deepcopy(self.module)
        for key in edit.keys:
            module.weight(key).add_(edit.strength * edit.delta(key, self.module.weight(key)))
            step(1)
        records = self.records if edit.record is None else (*self.records, edit.record)
        return ReaderWeights(module, edit.refinement or self.refinement, records), []


class ReaderDenoiser:
    """`mace.pipeline.host.Denoiser` of Readers: pixels that look at the text twice."""

    device = CPU

    def __init__(self, module: Readers):
        self.module, generator = module, torch.Generator().manual_seed(7)
        rows = {key.partition(".")[0]: count for key, count in SHAPES.items()}
        self.queries = {layer: 0.2 * torch.randn(CHANNELS, count, generator=generator) for layer, count in rows.items()}
        self.outs = {layer: torch.randn(count, CHANNELS, generator=generator) for layer, count in rows.items()}

    def noisy(self, latents, noise, timesteps):
        sigmas = torch.tensor([timestep / 500 for timestep in timesteps])
        return latents + sigmas.view(-1, 1, 1, 1) * noise, sigmas

    def together(self, sigmas):
        """One alone, and the others."""
        return [torch.arange(len(sigmas))[:1], torch.arange(len(sigmas))[1:]] if len(sigmas) > 1 else [torch.arange(1)]

    def predict(self, x, sigmas, contexts, pooled, attend):
        pixels = x.flatten(2).mT
        for layer, query in self.queries.items():
            k, v = (contexts @ self.module.weight(f"{layer}.to_{kind}").T for kind in "kv")
            at = Attention(pixels @ query, k, v, HEADS, tuple(x.shape[2:]))
            pixels = pixels + attend(layer, at) @ self.outs[layer]
        return pixels.mT.unflatten(2, x.shape[2:])


class Counted:
    """`mace.pipeline.host.Progress` that counts. bars: [total, done] of each."""

    def __init__(self):
        self.bars: list[list[int]] = []

    def begin(self, total):
        bar = [total, 0]
        self.bars.append(bar)

        def step(count):
            bar[1] += count

        return step
