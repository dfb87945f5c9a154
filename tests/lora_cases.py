"""LoRAs, names and helpers for the tests of the LoRA file layouts."""

import torch

from mace.formats.lora_layouts import (
    SD1,
    to_comfyui,
    to_kohya,
    to_peft,
)

FOUR, THREE = [2, 2, 2, 2], [2, 2, 2]  # SD1.x and SD2.x; SDXL

# By hand, from the published checkpoints and diffusers' own names of their modules.
SD1_BLOCKS = dict(
    zip(
        [f"input_blocks.{i}.1" for i in (1, 2, 4, 5, 7, 8)] + [f"output_blocks.{i}.1" for i in range(3, 12)],
        [f"down_blocks.{i}.attentions.{j}" for i in (0, 1, 2) for j in (0, 1)]
        + [f"up_blocks.{i}.attentions.{j}" for i in (1, 2, 3) for j in (0, 1, 2)],
        strict=True,
    )
) | {"middle_block.1": "mid_block.attentions.0"}
SDXL_BLOCKS = dict(
    zip(
        [f"input_blocks.{i}.1" for i in (4, 5, 7, 8)] + [f"output_blocks.{i}.1" for i in range(6)],
        [f"down_blocks.{i}.attentions.{j}" for i in (1, 2) for j in (0, 1)]
        + [f"up_blocks.{i}.attentions.{j}" for i in (0, 1) for j in (0, 1, 2)],
        strict=True,
    )
) | {"middle_block.1": "mid_block.attentions.0"}


def key_of(block, projection="to_k", index=0):
    return f"diffusion_model.{block}.transformer_blocks.{index}.attn2.{projection}.weight"


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def lora_for(shapes, ranks=(1, 2, 4), seed=0):
    """A LoRA over {key: (d_out, d)}; ranks are taken in turn."""
    g = seeded(seed)
    return {
        key: (
            torch.randn(d_out, ranks[i % len(ranks)], generator=g),
            torch.randn(ranks[i % len(ranks)], d, generator=g),
        )
        for i, (key, (d_out, d)) in enumerate(shapes.items())
    }


def sd1_lora(ranks=(1, 2, 4)):
    return lora_for({key_of(b, p): (6, 8) for b in SD1_BLOCKS for p in ("to_k", "to_v")}, ranks)


def write(layout, lora, blocks=FOUR):
    """(tensors, config) in a layout."""
    if layout == "comfyui":
        return to_comfyui(lora), None
    return (to_kohya(lora, blocks, SD1, "dog")[0], None) if layout == "kohya" else to_peft(lora, blocks)


def assert_same(found, expected):
    assert list(found) == list(expected)
    for key, (up, down) in expected.items():
        assert torch.equal(found[key][0], up) and torch.equal(found[key][1], down), key
        assert found[key][0].dtype == up.dtype
