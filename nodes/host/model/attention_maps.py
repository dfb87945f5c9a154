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
) -> Tensor:
    """Attention maps [n, h, w] of n images, averaged over heads, layers and timesteps, on the CPU.

    MOST_IMAGES are looked at together. latents: [n, ch, h, w] in the VAE's scale.  context: embeddings [N, d] of the
    prompt the images show.  positions: the concept's tokens in it.  pooled: [1, c] or None.  seed_name: of the stream
    that the noise is drawn from.
    """
    model_management.load_models_gpu([model])
    generator = stream(0, seed_name, "maps")
    parts = latents.split(MOST_IMAGES)
    return torch.cat([_maps(model, part, context, positions, pooled, generator, timesteps) for part in parts])


def _maps(model, latents, context, positions, pooled, generator, timesteps) -> Tensor:
    device = model.load_device
    count = len(latents)
    tokens = torch.zeros(count, len(context), device=device)
    tokens[:, list(positions)] = 1
    latents = latents.to(device, torch.float32)
    contexts = context.to(device)[None].expand(count, -1, -1)
    repeated = None if pooled is None else pooled.to(device).expand(count, -1)
    total = []
    for timestep in timesteps:
        model_management.throw_exception_if_processing_interrupted()
        noise = torch.randn(latents.shape, generator=generator).to(device)
        x, sigmas = noisy(model, latents, noise, [timestep] * count)
        watch = _Watch(tokens)
        ModelDenoiser(model).predict(x, sigmas, contexts, repeated, watch)
        total.append(average_maps(watch.maps))
    return torch.stack(total).mean(dim=0).cpu()
