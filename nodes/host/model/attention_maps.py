"""Where a model looks for a concept: its cross-attention to the concept's tokens, on the concept's own images."""

from collections.abc import Sequence

import torch
from comfy import model_management
from torch import Tensor

from ....mace.masks.maps import average_maps
from ....mace.method.loss import token_attention
from ....mace.method.train import stream
from ....mace.pipeline.attention_loss import attended
from ....mace.pipeline.host import Attention
from ..networks import Batches
from .forward import ModelDenoiser
from .predict import noisy

# Late in sampling things have their place and their outline; where all is noise nothing has.
TIMESTEPS = (100, 250, 400)
MOST_IMAGES = 8


class _Watch:
    """Attends as the host would, and keeps the attention to some tokens."""

    def __init__(self, tokens: Tensor):
        self.tokens = tokens
        self.maps: list[Tensor] = []

    def __call__(self, layer: str, at: Attention) -> Tensor:
        attention = token_attention(at.q, at.k, at.heads)
        chosen = (attention * self.tokens.to(attention)[:, None, None, :]).sum(dim=-1)
        self.maps.append(chosen.mean(dim=1).unflatten(1, at.grid))
        return attended(at, attention, at.k, at.v)


def concept_maps(
    model,
    latents: Tensor,
    context: Tensor,
    positions: Sequence[int],
    pooled: Tensor | None,
    seed_name: str,
    timesteps: Sequence[int] = TIMESTEPS,
    together: Batches | None = None,
) -> Tensor:
    """Attention maps [n, h, w] of n images, averaged over heads, layers and timesteps, on the CPU.

    MOST_IMAGES are looked at together, fewer where memory runs out; the noise stays the same. latents: [n, ch, h, w]
    in the VAE's scale.  context: embeddings [N, d] of the prompt the images show.  positions: the concept's tokens in
    it.  pooled: [1, c] or None.  seed_name: of the stream that the noise is drawn from.  together: of all concepts in a
    run. Raises the host's interrupt.
    """
    device, generator = model.load_device, stream(0, seed_name, "maps")
    each = model.memory_required([1, *latents.shape[1:]])
    noises = [torch.randn(latents.shape, generator=generator) for _ in timesteps]

    def run(rows: Tensor) -> Tensor:
        model_management.load_models_gpu([model], memory_required=len(rows) * each)
        tokens = torch.zeros(len(rows), len(context), device=device)
        tokens[:, list(positions)] = 1
        own = latents[rows].to(device, torch.float32)
        contexts = context.to(device)[None].expand(len(rows), -1, -1)
        repeated = None if pooled is None else pooled.to(device).expand(len(rows), -1)
        total = []
        for timestep, noise in zip(timesteps, noises, strict=True):
            model_management.throw_exception_if_processing_interrupted()
            x, sigmas = noisy(model, own, noise[rows].to(device), [timestep] * len(rows))
            watch = _Watch(tokens)
            ModelDenoiser(model).predict(x, sigmas, contexts, repeated, watch)
            total.append(average_maps(watch.maps))
        return torch.stack(total).mean(dim=0).cpu()

    together = together or Batches(MOST_IMAGES)
    return torch.stack(together.run(torch.arange(len(latents)), run))
