"""Eq. 3's loss through the host's own forward pass, with one LoRA for each sample of the batch.

Nothing of the host is replaced and no weight is touched: keys and values get each sample's LoRA in the attn2
replace patch, where the attention to the concept's tokens is at hand too. Only their loss is kept, not the maps.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from comfy import model_management
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..mace.attention import grid_mask, masked_loss, token_attention
from ..mace.lora import per_sample
from ..mace.train import Stack
from .unet import cross_attention_keys

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

    The host's weights are inference tensors, which cannot take part in a backward pass. The copy leaves the
    device when the block ends, however it ends. Raises ValueError when the host cannot copy the model.
    """
    with torch.inference_mode(False), torch.enable_grad():
        try:
            copy = model.clone(force_deepcopy=True)
        except (RuntimeError, OSError) as error:
            raise ValueError(
                f"the model cannot be copied for training: {error}. Load it with a checkpoint loader whose file is "
                "still there"
            ) from error
        copy.model.requires_grad_(False)
        before = model_management.in_training
        model_management.in_training = True
        try:
            model_management.load_models_gpu([copy], force_full_load=True)
            yield copy
        finally:
            model_management.in_training = before
            copy.detach()


@dataclass(frozen=True)
class Batch:
    """One sample a concept. latents: noisy x_t [C, ch, h, w] in the host's scale for `sigmas` [C].  contexts: text
    embeddings [C, N, d].  tokens: 1 at the positions of S in Eq. 3, [C, N].  masks: [C, H, W] in 0..1.  extra: what
    the family's forward takes besides (such as SDXL's y [C, ...])."""

    latents: Tensor
    sigmas: Tensor
    contexts: Tensor
    tokens: Tensor
    masks: Tensor
    extra: Mapping[str, Tensor]


class _Layer:
    """The attn2 replace patch of one cross-attention."""

    def __init__(self, batch: Batch, loras: dict[str, tuple[Tensor, Tensor]], form: str, save: bool, chained):
        self.batch, self.loras, self.form, self.save, self.chained = batch, loras, form, save, chained
        self.loss: Tensor | None = None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, options: dict) -> Tensor:
        height, width = options["activations_shape"][-2:]
        mask = grid_mask(self.batch.masks, height, width).to(q.device)
        heads = options["n_heads"]
        flat = [x for pair in self.loras.values() for x in pair]
        if self.save:
            # Inside the patch, so that the host's running block numbers, which it changes in place, play no part.
            out, self.loss = checkpoint(self._run, q, k, v, mask, heads, *flat, use_reentrant=False)
        else:
            out, self.loss = self._run(q, k, v, mask, heads, *flat)
        if self.chained is not None:
            keys, values = self._projected(k, v, flat)
            out = self.chained(q, keys, values, options)
        return out

    def _projected(self, k: Tensor, v: Tensor, flat) -> tuple[Tensor, Tensor]:
        pairs = dict(zip(self.loras, zip(flat[::2], flat[1::2], strict=True), strict=True))
        context = self.batch.contexts.to(k.device)
        added = {kind: per_sample(context, up, down).to(k.dtype) for kind, (up, down) in pairs.items()}
        return k + added.get("k", 0), v + added.get("v", 0)

    def _run(self, q, k, v, mask, heads, *flat) -> tuple[Tensor, Tensor]:
        keys, values = self._projected(k, v, flat)
        attention = token_attention(q, keys, heads)
        loss = masked_loss(attention, self.batch.tokens.to(attention), mask.to(attention), self.form)
        spread = values.unflatten(-1, (heads, -1)).transpose(1, 2)
        out = (attention.to(values.dtype) @ spread).transpose(1, 2).flatten(2)
        return out, loss


def patched_forward(model, batch: Batch, make) -> list:
    """One noise-predicting forward with a replace patch of ours on every cross-attention; returns the patches.

    make(place, chained) gives a layer's patch; chained: another pack's patch there, or None. The model's own options
    are left as they are.
    """
    options = model.model_options["transformer_options"].copy()
    replaced = {name: dict(group) for name, group in options.get("patches_replace", {}).items()}
    attn2 = replaced.setdefault("attn2", {})
    ours = {}
    for where in dict.fromkeys(place(key) for key in cross_attention_keys(model)):
        ours[where] = make(where, attn2.get(where, attn2.get(where[:2])))
    attn2.update(ours)
    options["patches_replace"] = replaced
    model.model.apply_model(
        batch.latents, batch.sigmas, c_crossattn=batch.contexts, transformer_options=options, **batch.extra
    )
    return list(ours.values())


def losses(copy, batch: Batch, stacked: Stack, form: str, save_memory: bool = False) -> Tensor:
    """Eq. 3's loss of each sample, [C], summed over all cross-attention layers of one forward pass.

    copy: from `trainable_copy`.  stacked: (B [C, d_out, r], A [C, r, d]) by projection; sample c uses pair c.
    form: one of mace.attention.LOSSES.  save_memory: recompute each attention in the backward pass.
    """
    loras: dict[tuple, dict[str, tuple[Tensor, Tensor]]] = {}
    for key, pair in stacked.items():
        loras.setdefault(place(key), {})["k" if ".to_k." in key else "v"] = pair
    layers = patched_forward(
        copy, batch, lambda where, chained: _Layer(batch, loras.get(where, {}), form, save_memory, chained)
    )
    return torch.stack([layer.loss for layer in layers]).sum(dim=0)


def noisy(model, latents: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
    """(x_t in the host's scale, sigmas [B]) of latents [B, ch, h, w] in the VAE's scale at timesteps [B]."""
    sampling = model.model.model_sampling
    sigmas = sampling.sigma(timesteps.to(latents.device, torch.float32))
    scaled = model.model.process_latent_in(latents)
    shaped = sigmas.view(-1, *[1] * (latents.dim() - 1))
    # The host adds the latents into the noise in place.
    return sampling.noise_scaling(shaped, noise.clone(), scaled), sigmas


def extra_inputs(model, latents: Tensor, pooled: Tensor | None) -> dict[str, Tensor]:
    """What the family's forward takes besides the text: SDXL's y, of the pooled text and the picture's size."""
    factor = model.get_model_object("latent_format").spacial_downscale_ratio
    height, width = (side * factor for side in latents.shape[-2:])
    y = model.model.encode_adm(device=latents.device, noise=latents, pooled_output=pooled, width=width, height=height)
    return {} if y is None else {"y": y.to(latents.device).expand(len(latents), -1)}
