"""Pictures of the demo model in the real host, many prompts in one batch."""

import hashlib
import json
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from devtools.cache import REPO
from mace.measure.judge import Judge

BATCH, CFG, SAMPLER, SCHEDULER = 32, 4.0, "ddim", "normal"


class Studio:
    """Draws with any MODEL of one checkpoint. host: an InProcessHost; clip, vae: of the checkpoint; judge: its own."""

    def __init__(self, host, clip, vae, steps: int, sampler: str = SAMPLER):
        self.host, self.clip, self.vae, self.steps, self.sampler = host, clip, vae, steps, sampler
        self.judge = Judge(REPO / "assets/demo/judge.safetensors")
        self._embeddings: dict[str, Tensor] = {}

    def encoded(self, prompt: str) -> Tensor:
        """The embeddings [77, d] of a prompt, by the host."""
        if prompt not in self._embeddings:
            self._embeddings[prompt] = self.host.encode(self.clip, prompt)[0][0][0]
        return self._embeddings[prompt]

    def draw(
        self,
        model,
        prompts: Sequence[str],
        seeds: Sequence[int],
        negative: Tensor | None = None,
        encode: Callable[[str], Tensor] | None = None,
    ) -> Tensor:
        """Pictures [B, 3, 64, 64]; a prompt and a seed have the same noise for every model and in every batch.

        negative: embeddings [77, d] to draw away from, of the empty prompt if None.  encode: a prompt's embeddings,
        in place of `encoded`.
        """
        import comfy.sample

        drawn = []
        with torch.inference_mode():
            away = self.encoded("") if negative is None else negative
            for start in range(0, len(prompts), BATCH):
                part = range(start, min(start + BATCH, len(prompts)))
                empty = torch.zeros(len(part), 4, 8, 8)
                noise = torch.stack([noise_of(prompts[i], seeds[i]) for i in part])
                # The host takes one row of a conditioning for each latent.
                towards = torch.stack([(encode or self.encoded)(prompts[i]) for i in part])
                positive, others = [[towards, {}]], [[away.expand_as(towards), {}]]
                how = (self.steps, CFG, self.sampler, SCHEDULER, positive, others, empty)
                latents = comfy.sample.sample(model, noise, *how, disable_pbar=True, seed=seeds[part.start])
                drawn.append(self.host.decode(self.vae, latents))
        return torch.cat(drawn)


def noise_of(prompt: str, seed: int) -> Tensor:
    """The noise [4, 8, 8] of a prompt and a seed."""
    digest = hashlib.sha256(f"{seed} {prompt}".encode()).digest()
    return torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(int.from_bytes(digest[:7], "little")))


def vocabulary() -> dict:
    """The demo model's words: concepts, synonyms, styles."""
    return json.loads((REPO / "assets/demo/vocabulary.json").read_text(encoding="utf-8"))
