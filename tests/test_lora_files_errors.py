"""LoRA file layouts: what is refused, and how the message names it."""

import re

import pytest
import torch

from mace.formats.lora_layouts import LAYOUTS, SD1, SDXL, to_comfyui, to_kohya, to_peft
from mace.formats.lora_reading import layout_of, read
from tests.lora_cases import FOUR, THREE, key_of, lora_for, sd1_lora, write


def test_layouts_are_told_apart_and_others_refused():
    with pytest.raises(ValueError, match="empty"):
        layout_of([])
    with pytest.raises(ValueError, match="transformer.blocks.0.lora_A.weight is no LoRA key"):
        layout_of(["transformer.blocks.0.lora_A.weight"])
    lora = sd1_lora()
    mixed = to_comfyui(lora) | to_peft(lora, FOUR)[0]
    with pytest.raises(ValueError, match="mixes layouts: base_model.model.down_blocks.0.* peft.* comfyui"):
        layout_of(mixed)


@pytest.mark.parametrize(
    "name",
    [
        "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_k.lora_up.weight",
        "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_q.lora_up.weight",
        "diffusion_model.input_blocks.3.1.transformer_blocks.0.attn2.to_k.lora_up.weight",
        "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.dora_scale",
        "diffusion_model.output_blocks.12.1.transformer_blocks.0.attn2.to_k.lora_up.weight",
        "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight",
        "lora_unet_down_blocks_9_attentions_0_transformer_blocks_0_attn2_to_k.lora_up.weight",
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_mid.weight",
        "base_model.model.up_blocks.4.attentions.0.transformer_blocks.0.attn2.to_k.lora_A.weight",
        "base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.lora_magnitude_vector",
    ],
)
def test_an_unknown_key_is_named(name):
    with pytest.raises(ValueError, match=re.escape(name)):
        read({name: torch.zeros(2, 2)}, FOUR)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("half", ["up", "down"])
def test_half_a_pair_is_named(layout, half):
    tensors, config = write(layout, sd1_lora())
    ends = {"up": ("lora_up.weight", "lora_B.weight"), "down": ("lora_down.weight", "lora_A.weight")}
    gone = next(name for name in tensors if name.endswith(ends[half]))
    del tensors[gone]
    with pytest.raises(ValueError, match=f"{re.escape(gone.rsplit('.lora_', 1)[0])}.*the {half} half"):
        read(tensors, FOUR, config)


def test_an_alpha_alone_is_named():
    tensors = to_comfyui(sd1_lora())
    name = next(n for n in tensors if n.endswith(".alpha"))
    with pytest.raises(ValueError, match=f"{re.escape(name)}: the up and down half"):
        read({name: tensors[name]}, FOUR)


@pytest.mark.parametrize(
    "end, value, message",
    [
        ("lora_up.weight", torch.full((6, 1), torch.nan), "not finite"),
        ("lora_up.weight", torch.zeros(6, 1, dtype=torch.int8), "torch.int8"),
        ("lora_up.weight", torch.zeros(6, 3), r"up \[6, 3\] and down \[1, 8\]"),
        ("lora_up.weight", torch.zeros(6), r"up \[6\]"),
        ("alpha", torch.zeros(2), "no single number"),
        ("alpha", torch.tensor(torch.inf), "not finite"),
    ],
)
def test_bad_values_are_named(end, value, message):
    tensors = to_comfyui(sd1_lora())
    name = next(n for n in tensors if n.endswith(end))
    with pytest.raises(ValueError, match=f"{re.escape(name)}.*{message}"):
        read(tensors | {name: value}, FOUR)


def test_a_weight_named_twice_is_refused():
    tensors, _ = to_kohya(lora_for({key_of("input_blocks.1.1"): (6, 8)}), FOUR, SD1, "x")
    other = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn2_to_k.lora_up.weight"
    with pytest.raises(ValueError, match=f"{other} and lora_unet_down_blocks_0.* name the same"):
        read(tensors | {other: torch.zeros(6, 1)}, FOUR)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"use_dora": True}, "plain LoRA"),
        ({"peft_type": "LOHA"}, "plain LoRA"),
        ({"bias": "all"}, "plain LoRA"),
        ({"r": 7, "rank_pattern": {}}, "rank 7"),
        ({"lora_alpha": "four", "alpha_pattern": {}}, "four"),
        ({"alpha_pattern": {"to_(k": 1}}, r"to_\(k"),
    ],
)
def test_a_config_of_another_kind_is_refused(change, message):
    tensors, config = to_peft(sd1_lora(), FOUR)
    with pytest.raises(ValueError, match=message):
        read(tensors, FOUR, config | change)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_no_lora_is_not_written(layout):
    with pytest.raises(ValueError, match="no projection"):
        write(layout, {})
    with pytest.raises(ValueError, match="attn1.to_k"):
        write(layout, {key_of("middle_block.1").replace("attn2", "attn1"): (torch.zeros(2, 1), torch.zeros(1, 2))})
    with pytest.raises(ValueError, match="middle_block.1.*are not"):
        write(layout, {key_of("middle_block.1"): (torch.zeros(2, 1), torch.zeros(2, 2))})


def test_a_block_the_unet_lacks_is_not_written():
    lora = lora_for({key_of("output_blocks.11.1"): (6, 8)})
    for writer in (lambda: to_kohya(lora, THREE, SDXL, "x"), lambda: to_peft(lora, THREE)):
        with pytest.raises(ValueError, match="output_blocks.11.1"):
            writer()
