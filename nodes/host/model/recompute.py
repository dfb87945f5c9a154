"""Gradient checkpointing of a UNet: its blocks keep their inputs alone, and are computed again in the backward pass."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from comfy.ldm.modules.attention import BasicTransformerBlock
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock
from torch import nn
from torch.utils.checkpoint import checkpoint


@contextmanager
def recomputed_blocks(network: nn.Module) -> Iterator[None]:
    """Within, every residual and transformer block of a network of ours (see `forward.trainable_copy`) is recomputed.

    Gradients stay the same. What replace patches leave behind, such as a loss, is part of the graph all the same.
    """
    blocks = [block for block in network.modules() if isinstance(block, BasicTransformerBlock | ResBlock)]
    # Other nodes may have given one a forward of its own.
    theirs = [vars(block).get("forward") for block in blocks]
    for block in blocks:
        block.forward = partial(_recomputed, block.forward)
    try:
        yield
    finally:
        for block, own in zip(blocks, theirs, strict=True):
            if own is None:
                del block.forward
            else:
                block.forward = own


def _recomputed(forward, *inputs, **options):
    if not torch.is_grad_enabled():
        return forward(*inputs, **options)
    if "transformer_options" in options:
        # The host counts its blocks in this one dict as it runs: by the time of the second call it would name others.
        options["transformer_options"] = dict(options["transformer_options"])
    # Patches may draw numbers (HyperTile its tiles): the second time the same ones.
    return checkpoint(forward, *inputs, use_reentrant=False, preserve_rng_state=True, **options)
