"""Pictures of the demo model, and of small models of other layouts, in the real host, many prompts in one batch."""

import hashlib
import json
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from devtools.cache import REPO
from mace.measure.judge import Judge

BATCH, CFG, SAMPLER, SCHEDULER = 32, 4.0, "ddim", "normal"


class Studio:
    """Draws with any MODEL of one checkpoint. host: an InProcessHost; clip, vae: of the checkpoint; judge: its own.

    pooled: whether the model reads a pooled text besides the embeddings.  channels: of its latents.
    """

    def __init__(self, host, clip, vae, steps: int, sampler: str = SAMPLER, pooled: bool = False, channels: int = 4):
        self.host, self.clip, self.vae, self.steps, self.sampler = host, clip, vae, steps, sampler
        self.pooled, self.channels = pooled, channels
        self.judge = Judge(REPO / "assets/demo/judge.safetensors")
        self._conditionings: dict[str, tuple[Tensor, Tensor | None]] = {}

    def conditioning(self, prompt: str) -> tuple[Tensor, Tensor | None]:
        """(embeddings [77, d], pooled text [c]) of a prompt, by the host."""
        if prompt not in self._conditionings:
            tokens, more = self.host.encode(self.clip, prompt)[0]
            self._conditionings[prompt] = tokens[0], more["pooled_output"][0] if self.pooled else None
        return self._conditionings[prompt]

    def encoded(self, prompt: str) -> Tensor:
        """The embeddings [77, d] of a prompt, by the host."""
        return self.conditioning(prompt)[0]

    def pooled_of(self, prompt: str) -> Tensor:
        """The pooled text [c] of a prompt, by the host."""
        return self.conditioning(prompt)[1]

    def _pooled(self, prompts: Sequence[str], pool: Callable[[str], Tensor] | None = None) -> dict[str, Tensor]:
        """What a CONDITIONING of prompts has besides the embeddings."""
        if not self.pooled:
            return {}
        return {"pooled_output": torch.stack([(pool or self.pooled_of)(prompt) for prompt in prompts])}

    def draw(
        self,
        model,
        prompts: Sequence[str],
        seeds: Sequence[int],
        negative: Tensor | None = None,
        encode: Callable[[str], Tensor] | None = None,
        pool: Callable[[str], Tensor] | None = None,
    ) -> Tensor:
        """Pictures [B, 3, 64, 64]; a prompt and a seed have the same noise for every model and in every batch.

        negative: embeddings [77, d] to draw away from, of the empty prompt if None.  encode: a prompt's embeddings,
        in place of `encoded`.  pool: its pooled text, in place of `pooled_of`.
        """
        import comfy.sample

        drawn = []
        with torch.inference_mode():
            away = self.encoded("") if negative is None else negative
            for start in range(0, len(prompts), BATCH):
                part = range(start, min(start + BATCH, len(prompts)))
                empty = torch.zeros(len(part), self.channels, 8, 8)
                noise = torch.stack([noise_of(prompts[i], seeds[i], self.channels) for i in part])
                # The host takes one row of a conditioning for each latent.
                towards = torch.stack([(encode or self.encoded)(prompts[i]) for i in part])
                asked = [prompts[i] for i in part]
                positive = [[towards, self._pooled(asked, pool)]]
                others = [[away.expand_as(towards), self._pooled([""] * len(asked))]]
                how = (self.steps, CFG, self.sampler, SCHEDULER, positive, others, empty)
                latents = comfy.sample.sample(model, noise, *how, disable_pbar=True, seed=seeds[part.start])
                drawn.append(self.host.decode(self.vae, latents))
        return torch.cat(drawn)


def noise_of(prompt: str, seed: int, channels: int = 4) -> Tensor:
    """The noise [channels, 8, 8] of a prompt and a seed."""
    digest = hashlib.sha256(f"{seed} {prompt}".encode()).digest()
    return torch.randn(channels, 8, 8, generator=torch.Generator().manual_seed(int.from_bytes(digest[:7], "little")))


def vocabulary() -> dict:
    """The demo model's words: concepts, synonyms, styles."""
    return json.loads((REPO / "assets/demo/vocabulary.json").read_text(encoding="utf-8"))
