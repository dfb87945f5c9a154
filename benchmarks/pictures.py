"""Pictures of the demo model in the real host, many prompts in one batch; and what the judge sees in them."""

import hashlib
import json
from collections.abc import Sequence

import torch
from torch import Tensor

from devtools.cache import REPO
from devtools.judge import Judge

BATCH, CFG, SAMPLER, SCHEDULER = 32, 4.0, "ddim", "normal"


class Studio:
    """Draws with any MODEL of one checkpoint and judges. host: an InProcessHost; clip, vae: of the checkpoint."""

    def __init__(self, host, clip, vae, steps):
        self.host, self.clip, self.vae, self.steps = host, clip, vae, steps
        self.judge = Judge(REPO / "assets/demo/judge.safetensors")
        self._embeddings: dict[str, Tensor] = {}

    def _encoded(self, prompts: Sequence[str]) -> Tensor:
        for prompt in dict.fromkeys(prompts):
            if prompt not in self._embeddings:
                self._embeddings[prompt] = self.host.encode(self.clip, prompt)[0][0]
        return torch.cat([self._embeddings[prompt] for prompt in prompts])

    def draw(self, model, prompts: Sequence[str], seed: int, negative=None) -> Tensor:
        """Pictures [B, 3, 64, 64]; a prompt has the same noise for every model, whatever it is drawn with.

        negative: one CONDITIONING for all prompts, that of the empty prompt if None.
        """
        import comfy.sample

        drawn = []
        with torch.inference_mode():
            against = self._encoded([""]) if negative is None else negative[0][0]
            for start in range(0, len(prompts), BATCH):
                part = prompts[start : start + BATCH]
                empty = torch.zeros(len(part), 4, 8, 8)
                noise = torch.stack([_noise(prompt, seed) for prompt in part])
                # The host takes one row of a conditioning for each latent.
                conditionings = [[self._encoded(part), {}]], [[against.repeat(len(part), 1, 1), {}]]
                how = (self.steps, CFG, SAMPLER, SCHEDULER, *conditionings, empty)
                latents = comfy.sample.sample(model, noise, *how, disable_pbar=True, seed=seed)
                drawn.append(self.host.decode(self.vae, latents))
        return torch.cat(drawn)

    def right(self, model, asked: Sequence[tuple[str, str]], seed: int, negative=None) -> Tensor:
        """For (prompt, name): 1 where the judge's first answer is the name, else 0; [B]. negative: as in `draw`."""
        found = self.judge(self.draw(model, [prompt for prompt, _ in asked], seed, negative)).argmax(-1)
        wanted = torch.tensor([self.judge.names.index(name) for _, name in asked])
        return (found == wanted).float()

    def in_style(self, model, prompts: Sequence[str], style: str, seed: int, negative=None) -> Tensor:
        """1 where the judge sees the style, else 0; [B]. negative: as in `draw`."""
        seen = self.judge.style(self.draw(model, prompts, seed, negative)).argmax(-1)
        return (seen == self.judge.styles.index(style)).float()


def _noise(prompt: str, seed: int) -> Tensor:
    digest = hashlib.sha256(f"{seed} {prompt}".encode()).digest()
    return torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(int.from_bytes(digest[:7], "little")))


def vocabulary() -> dict:
    """The demo model's words: concepts, synonyms, styles."""
    return json.loads((REPO / "assets/demo/vocabulary.json").read_text(encoding="utf-8"))
