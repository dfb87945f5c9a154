"""Eq. 3's loss through a model's own forward pass, with one LoRA for each sample of the batch.

No weight is touched: keys and values get each sample's LoRA where the model attends (see `host.Denoiser`), where the
attention to the concept's tokens is at hand too. Only their loss is kept, not the maps.

Precision, whatever dtype the model computes in: keys and values with their LoRA, scores, softmax and loss are float32
(there are 77 keys, so that costs next to nothing); what goes back into the model has its dtype. In fp16 the caller
scales the loss (see mace.method.precision), since small gradients vanish there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..method.lora import per_sample
from ..method.loss import grid_mask, masked_loss, token_attention, weighted_values
from ..method.train import Stack
from .host import Attention, Denoiser


@dataclass(frozen=True)
class Batch:
    """One sample a concept. latents: noisy x_t [C, ch, h, w] in the host's scale for `sigmas` [C].  contexts: text
    embeddings [C, N, d].  tokens: 1 at the positions of S in Eq. 3, [C, N].  masks: [C, H, W] in 0..1, on the CPU.
    pooled: pooled text [C, c], None where the model reads none."""

    latents: Tensor
    sigmas: Tensor
    contexts: Tensor
    tokens: Tensor
    masks: Tensor
    pooled: Tensor | None = None
    _grids: dict = field(default_factory=dict, repr=False)

    def only(self, rows: Tensor) -> "Batch":
        """Some of the samples, by their numbers."""
        own = (self.latents, self.sigmas, self.contexts, self.tokens)
        pooled = None if self.pooled is None else self.pooled[rows]
        return Batch(*(tensor[rows] for tensor in own), self.masks[rows.to(self.masks.device)], pooled)

    def grid(self, height: int, width: int) -> Tensor:
        """The masks on a layer's grid, [C, height * width]; made once a batch."""
        if (height, width) not in self._grids:
            # On the CPU, since not every device pools to sizes that do not divide.
            self._grids[height, width] = grid_mask(self.masks.cpu(), height, width).to(self.latents.device)
        return self._grids[height, width]


def attended(at: Attention, attention: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """What an attention hands on, as q: of probabilities [B, heads, pixels, tokens] and values [B, tokens, heads * c].

    Another pack's patch is given keys and values in the model's dtype, as in sampling (see mace.method.precision).
    """
    if at.others is not None:
        return at.others(keys.to(at.k.dtype), values.to(at.v.dtype))
    return weighted_values(attention, values).to(at.q.dtype)


def attend(layer: str, at: Attention) -> Tensor:
    """Attends as the model would, with scores and softmax in float32 at least (see `host.Attend`)."""
    return attended(at, token_attention(at.q, at.k, at.heads), at.k, at.v)


class _Attend:
    """What the model attends with, and the loss of each of its layers."""

    def __init__(self, batch: Batch, loras: Mapping[str, Mapping[str, tuple[Tensor, Tensor]]], form: str):
        self.batch, self.loras, self.form = batch, loras, form
        self.losses: dict[str, Tensor] = {}

    def __call__(self, layer: str, at: Attention) -> Tensor:
        own = self.loras.get(layer, {})
        keys, values = self._with_lora(own.get("k"), at.k), self._with_lora(own.get("v"), at.v)
        attention = token_attention(at.q, keys, at.heads)
        mask = self.batch.grid(*at.grid)
        self.losses[layer] = masked_loss(attention, self.batch.tokens.to(attention), mask.to(attention), self.form)
        return attended(at, attention, keys, values)

    def _with_lora(self, pair: tuple[Tensor, Tensor] | None, projected: Tensor) -> Tensor:
        """Keys or values with each sample's LoRA, in float32 at least."""
        wide = projected.to(torch.promote_types(projected.dtype, torch.float32))
        return wide if pair is None else wide + per_sample(self.batch.contexts.to(wide), *pair)


def in_order(parts: Sequence[Tensor], rows: Sequence[Tensor]) -> Tensor:
    """Results [n, ...] for the samples of `Denoiser.together` as one, in the samples' order."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))[torch.cat(list(rows)).argsort()]


def losses(model: Denoiser, batch: Batch, stacked: Stack, form: str) -> Tensor:
    """Eq. 3's loss of each sample, [C], summed over all cross-attention layers of one forward pass.

    model: one that gradients run through.  stacked: (B [C, d_out, r], A [C, r, d]) by projection; sample c uses pair c.
    form: one of mace.method.loss.LOSSES.
    """
    parts = model.together(batch.sigmas)
    if len(parts) > 1:
        own = [({key: (up[rows], down[rows]) for key, (up, down) in stacked.items()}, rows) for rows in parts]
        return in_order([losses(model, batch.only(rows), some, form) for some, rows in own], parts)
    loras: dict[str, dict[str, tuple[Tensor, Tensor]]] = {}
    for key, pair in stacked.items():
        layer, _, kind = key.rpartition(".to_")
        loras.setdefault(layer, {})[kind[0]] = pair
    attend = _Attend(batch, loras, form)
    model.predict(batch.latents, batch.sigmas, batch.contexts, batch.pooled, attend)
    return torch.stack(list(attend.losses.values())).sum(dim=0)
