"""Where a model looks for a concept: its cross-attention to the concept's tokens, on the concept's own images."""

from collections.abc import Sequence

import torch
from comfy import model_management
from torch import Tensor

from ....mace.masks.maps import average_maps
from ....mace.method.loss import token_attention, weighted_values
from ....mace.method.train import stream
from .forward import Batch, patched_forward
from .predict import noisy

# Late in sampling things have their place and their outline; where all is noise nothing has.
TIMESTEPS = (100, 250, 400)
MOST_IMAGES = 8


class _Watch:
    """An attn2 replace patch that computes what the host would, and keeps the attention to some tokens."""

    def __init__(self, tokens: Tensor, chained):
        self.tokens, self.chained = tokens, chained
        self.map: Tensor | None = None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, options: dict) -> Tensor:
        height, width = options["activations_shape"][-2:]
        attention = token_attention(q, k, options["n_heads"])
        chosen = (attention * self.tokens.to(attention)[:, None, None, :]).sum(dim=-1)
        self.map = chosen.mean(dim=1).unflatten(1, (height, width))
        if self.chained is not None:
            return self.chained(q, k, v, options)
        return weighted_values(attention, v).to(q.dtype)


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
        batch = Batch(x, sigmas, contexts, tokens, torch.empty(0), repeated)
        layers = patched_forward(model, batch, lambda where, chained: _Watch(tokens, chained))
        total.append(average_maps([layer.map for layer in layers]))
    return torch.stack(total).mean(dim=0).cpu()
