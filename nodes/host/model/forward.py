"""Eq. 3's loss through the host's own forward pass, with one LoRA for each sample of the batch.

Nothing of the host is replaced and no weight is touched: keys and values get each sample's LoRA in the attn2
replace patch, where the attention to the concept's tokens is at hand too. Only their loss is kept, not the maps.

Precision, whatever dtype the model computes in: keys and values with their LoRA, scores, softmax and loss are float32
(there are 77 keys, so that costs next to nothing); what goes back into the model has its dtype. In fp16 the caller
scales the loss (see mace.method.precision), since small gradients vanish there.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from comfy import model_management
from torch import Tensor

from ....mace.method.lora import per_sample
from ....mace.method.loss import grid_mask, masked_loss, token_attention, weighted_values
from ....mace.method.train import Stack
from .fp8 import own_wide_layers
from .memory import make_way
from .predict import in_order, predict, together
from .unet import cross_attention_keys, is_quantised

_PLACE = re.compile(r"^diffusion_model\.(input|middle|output)_blocks?\.(\d+)\.(?:\d+\.)?transformer_blocks\.(\d+)\.")


def place(key: str) -> tuple[str, int, int]:
    """Where the host's patches find the cross-attention of a projection: (block, its number, index inside it)."""
    found = _PLACE.match(key)
    if found is None:
        raise ValueError(f"{key} is not in a block of a Stable Diffusion UNet")
    block, number, index = found.groups()
    return block, 0 if block == "middle" else int(number), int(index)


@contextmanager
def trainable_copy(model) -> Iterator:
    """A copy of MODEL that autograd can run through: its own weights, frozen, with all patches baked in, loaded.

    The host's weights are inference tensors, which cannot take part in a backward pass; and its dynamic memory manager
    takes weights off the device after each layer, while autograd still needs them. The copy leaves the device when
    the block ends, however it ends. Raises ValueError when the host cannot copy the model.
    """
    with torch.inference_mode(False), torch.enable_grad():
        try:
            copy = model.clone(disable_dynamic=True, force_deepcopy=True)
        except (RuntimeError, OSError) as error:
            raise ValueError(
                f"the model cannot be copied for training: {str(error).rstrip('.')}. Load it with a checkpoint loader "
                "whose file is still there"
            ) from error
        own_wide_layers(copy)
        _in_the_hosts_dtypes(copy.model)
        copy.model.requires_grad_(False)
        before = model_management.in_training
        model_management.in_training = True
        try:
            load(copy)
            yield copy
        finally:
            model_management.in_training = before
            copy.detach()


def _in_the_hosts_dtypes(network: torch.nn.Module) -> None:
    """Weights of a plain copy in the dtypes the host chose for them.

    Where its dynamic memory is on, layers take a file's dtype over as it is and are cast as they run, which a plain
    patcher does not do: fp32 weights would meet fp16 activations.
    """
    for module in network.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            chosen = getattr(module, f"{name}_comfy_model_dtype", None) or weight.dtype
            if weight.dtype != chosen and weight.is_floating_point() and not is_quantised(weight):
                setattr(module, name, torch.nn.Parameter(weight.to(chosen), requires_grad=False))


def load(copy, memory: float = 0.0) -> None:
    """The copy on its device as a whole, with room for `memory` bytes beside it; other models make way."""
    make_way(copy)
    model_management.load_models_gpu([copy], memory_required=memory, force_full_load=True)


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


class _Layer:
    """The attn2 replace patch of one cross-attention."""

    def __init__(self, batch: Batch, loras: dict[str, tuple[Tensor, Tensor]], form: str, chained):
        self.batch, self.loras, self.form, self.chained = batch, loras, form, chained
        self.loss: Tensor | None = None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, options: dict) -> Tensor:
        keys, values = self._with_lora("k", k), self._with_lora("v", v)
        attention = token_attention(q, keys, options["n_heads"])
        mask = self.batch.grid(*options["activations_shape"][-2:])
        self.loss = masked_loss(attention, self.batch.tokens.to(attention), mask.to(attention), self.form)
        if self.chained is not None:
            return self.chained(q, keys.to(k.dtype), values.to(v.dtype), options)
        return weighted_values(attention, values).to(q.dtype)

    def _with_lora(self, kind: str, projected: Tensor) -> Tensor:
        """Keys or values with each sample's LoRA, in float32 at least."""
        wide = projected.to(torch.promote_types(projected.dtype, torch.float32))
        if kind not in self.loras:
            return wide
        return wide + per_sample(self.batch.contexts.to(wide), *self.loras[kind])


def patched_forward(model, batch: Batch, make) -> list:
    """One noise-predicting forward with a replace patch of ours on every cross-attention; returns the patches.

    make(place, chained) gives a layer's patch; chained: another pack's patch there, or None. The model's own options
    are left as they are.
    """
    ours = {}

    def replace(attn2: dict) -> None:
        for where in dict.fromkeys(place(key) for key in cross_attention_keys(model)):
            ours[where] = make(where, attn2.get(where, attn2.get(where[:2])))
        attn2.update(ours)

    predict(model, batch.latents, batch.sigmas, batch.contexts, batch.pooled, replace)
    return list(ours.values())


def losses(copy, batch: Batch, stacked: Stack, form: str) -> Tensor:
    """Eq. 3's loss of each sample, [C], summed over all cross-attention layers of one forward pass.

    copy: from `trainable_copy`.  stacked: (B [C, d_out, r], A [C, r, d]) by projection; sample c uses pair c.
    form: one of mace.method.loss.LOSSES.
    """
    parts = together(copy, batch.sigmas)
    if len(parts) > 1:
        own = [({key: (up[rows], down[rows]) for key, (up, down) in stacked.items()}, rows) for rows in parts]
        return in_order([losses(copy, batch.only(rows), some, form) for some, rows in own], parts)
    loras: dict[tuple, dict[str, tuple[Tensor, Tensor]]] = {}
    for key, pair in stacked.items():
        loras.setdefault(place(key), {})["k" if ".to_k." in key else "v"] = pair
    layers = patched_forward(copy, batch, lambda where, chained: _Layer(batch, loras.get(where, {}), form, chained))
    return torch.stack([layer.loss for layer in layers]).sum(dim=0)
