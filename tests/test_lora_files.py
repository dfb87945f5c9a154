"""LoRA file layouts: names of modules, round trips, metadata and scales."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from mace.formats.lora_layouts import (
    LAYOUTS,
    SD1,
    SD2,
    SD2_V,
    SDXL,
    diffusers_blocks,
    diffusers_module,
    to_comfyui,
    to_kohya,
    to_peft,
)
from mace.formats.lora_reading import layout_of, read
from tests.lora_cases import (
    FOUR,
    SD1_BLOCKS,
    SDXL_BLOCKS,
    THREE,
    assert_same,
    key_of,
    lora_for,
    sd1_lora,
    seeded,
    write,
)

# Names


@pytest.mark.parametrize("blocks, expected", [(FOUR, SD1_BLOCKS), (THREE, SDXL_BLOCKS)])
def test_block_names_of_the_published_models(blocks, expected):
    names = diffusers_blocks(blocks)
    assert {block: names[block] for block in expected} == expected
    assert len(set(names.values())) == len(names) == 2 * sum(blocks) + len(blocks) + 1
    assert names.keys() & {"input_blocks.0.1", "input_blocks.3.1", "input_blocks.6.1"} == set()


@pytest.mark.host
@pytest.mark.parametrize("blocks", [FOUR, THREE, [1, 1, 1], [3, 3, 3, 3], [2]])
def test_module_names_are_the_hosts(comfy_host, blocks):
    import comfy.utils

    levels = len(blocks)
    config = {
        "num_res_blocks": list(blocks),
        "channel_mult": [1] * levels,
        "transformer_depth": [2] * sum(blocks),
        "transformer_depth_output": [2] * (sum(blocks) + levels),
        "transformer_depth_middle": 2,
    }
    names = comfy.utils.unet_to_diffusers(config)
    hosts = {f"diffusion_model.{n}": d for d, n in names.items() if re.search(r"attn2\.to_[kv]\.weight$", n)}
    assert len(hosts) == 4 * (2 * sum(blocks) + levels + 1)
    assert {key: f"{diffusers_module(key, blocks)}.weight" for key in hosts} == hosts


@pytest.mark.host
@pytest.mark.parametrize("blocks", [FOUR, [1, 2, 3], [3, 1]])
def test_block_names_fit_a_real_unet(comfy_host, blocks):
    """Also with other numbers a level, where the host's own table is not right."""
    import comfy.ops
    from comfy.ldm.modules.attention import SpatialTransformer
    from comfy.ldm.modules.diffusionmodules.openaimodel import Downsample, UNetModel, Upsample

    unet = UNetModel(
        image_size=8,
        in_channels=4,
        out_channels=4,
        model_channels=32,
        num_res_blocks=list(blocks),
        channel_mult=[1] * len(blocks),
        num_heads=1,
        use_spatial_transformer=True,
        context_dim=8,
        transformer_depth=[1] * sum(blocks),
        transformer_depth_output=[1] * (sum(blocks) + len(blocks)),
        transformer_depth_middle=1,
        dtype=torch.float32,
        operations=comfy.ops.disable_weight_init,
    )
    walked = {"middle_block.1": "mid_block.attentions.0"}
    for side, modules in (("down", unet.input_blocks), ("up", unet.output_blocks)):
        level = count = 0
        for i, module in enumerate(modules):
            if len(module) > 1 and isinstance(module[1], SpatialTransformer):
                walked[f"{side.replace('down', 'in').replace('up', 'out')}put_blocks.{i}.1"] = (
                    f"{side}_blocks.{level}.attentions.{count}"
                )
                count += 1
            if any(isinstance(m, Downsample | Upsample) for m in module):
                level, count = level + 1, 0
    assert diffusers_blocks(blocks) == walked


# Round trips


@pytest.mark.parametrize("layout", LAYOUTS)
def test_round_trip(layout, tmp_path):
    lora = sd1_lora()
    tensors, config = write(layout, lora)
    save_file(tensors, tmp_path / "lora.safetensors")
    tensors = load_file(tmp_path / "lora.safetensors")
    config = json.loads(json.dumps(config))
    assert layout_of(tensors) == layout
    found = read(tensors, FOUR, config)
    assert_same({key: found[key] for key in lora}, lora)
    assert found.keys() == lora.keys()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_are_kept(layout, dtype):
    lora = {key: (up.to(dtype), down.to(dtype)) for key, (up, down) in sd1_lora().items()}
    tensors, config = write(layout, lora)
    found = read(tensors, FOUR, config)
    assert_same({key: found[key] for key in lora}, lora)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_written_is_free_of_the_loras_memory_and_gradients(layout, tmp_path):
    # Two LoRAs of one stack, as training holds them: transposed views of one memory, with gradients.
    stack = torch.randn(2, 4, 6, generator=seeded(), requires_grad=True)
    lora = {key_of(b): (stack[i].mT, stack[i]) for i, b in enumerate(["input_blocks.1.1", "middle_block.1"])}
    tensors, _ = write(layout, lora)
    before = {name: t.clone() for name, t in tensors.items()}
    save_file(tensors, tmp_path / "lora.safetensors")  # refuses shared memory and odd strides
    with torch.no_grad():
        stack.zero_()
    assert all(torch.equal(t, before[name]) and not t.requires_grad for name, t in tensors.items())


def test_names_of_every_layout():
    lora = lora_for({key_of("input_blocks.4.1", "to_v", 3): (6, 8)}, ranks=(2,))
    assert set(to_comfyui(lora)) == {
        f"diffusion_model.input_blocks.4.1.transformer_blocks.3.attn2.to_v.{part}"
        for part in ("lora_up.weight", "lora_down.weight", "alpha")
    }
    assert set(to_kohya(lora, THREE, SDXL, "x")[0]) == {
        f"lora_unet_down_blocks_1_attentions_0_transformer_blocks_3_attn2_to_v.{part}"
        for part in ("lora_up.weight", "lora_down.weight", "alpha")
    }
    assert set(to_peft(lora, THREE)[0]) == {
        f"base_model.model.down_blocks.1.attentions.0.transformer_blocks.3.attn2.to_v.lora_{half}.weight"
        for half in "AB"
    }


@pytest.mark.parametrize("base, version", [(SD1, "sd_v1"), (SD2, "sd_v2"), (SD2_V, "sd_v2_v")])
def test_kohyas_metadata(base, version):
    tensors, metadata = to_kohya(sd1_lora(ranks=(4,)), FOUR, base, "dog", "erases dog")
    assert all(isinstance(value, str) for value in metadata.values())
    assert metadata["ss_network_module"] == "networks.lora"
    assert metadata["ss_network_dim"] == metadata["ss_network_alpha"] == "4"
    assert metadata["ss_base_model_version"] == version and metadata["ss_v2"] == str(base is not SD1)
    assert metadata["modelspec.architecture"] == base.architecture + "/lora"
    assert metadata["modelspec.prediction_type"] == ("v" if base is SD2_V else "epsilon")
    assert metadata["modelspec.title"] == metadata["ss_output_name"] == "dog"
    assert metadata["modelspec.description"] == "erases dog"
    assert {t.item() for name, t in tensors.items() if name.endswith("alpha")} == {4.0}


def test_kohyas_metadata_of_mixed_ranks_and_of_an_unknown_model():
    _, metadata = to_kohya(sd1_lora(), FOUR, None, "dog")
    assert metadata["ss_network_dim"] == metadata["ss_network_alpha"] == "Dynamic"
    assert "modelspec.architecture" not in metadata and "ss_base_model_version" not in metadata


# Scales


@pytest.mark.parametrize("layout", ["comfyui", "kohya"])
@pytest.mark.parametrize("alpha", [torch.tensor(1.0), torch.tensor(3), torch.tensor([0.5], dtype=torch.float16)])
def test_alpha_over_rank_is_read(layout, alpha):
    lora = sd1_lora()
    tensors, _ = write(layout, lora)
    tensors |= {name: alpha for name in tensors if name.endswith(".alpha")}
    for key, (up, down) in read(tensors, FOUR).items():
        expected = float(alpha) / down.shape[0] * (lora[key][0] @ lora[key][1])
        torch.testing.assert_close(up @ down, expected)


@pytest.mark.parametrize("layout", ["comfyui", "kohya"])
def test_a_missing_alpha_means_scale_one(layout):
    lora = sd1_lora()
    tensors = {name: t for name, t in write(layout, lora)[0].items() if not name.endswith(".alpha")}
    assert_same(read(tensors, FOUR), lora)


def test_a_scale_is_multiplied_in_at_full_precision():
    key = key_of("middle_block.1")
    tensors = to_comfyui({key: (torch.full((2, 3), 1.0).half(), torch.ones(3, 2).half())})
    tensors[key.replace(".weight", ".alpha")] = torch.tensor(1.0)
    up, down = read(tensors, FOUR)[key]
    assert up.dtype == torch.float32 and down.dtype == torch.float16
    assert up[0, 0].item() == pytest.approx(1 / 3, rel=1e-6)


def test_kohya_files_with_the_hosts_names_are_read():
    """As kohya's own trainer writes them for SDXL."""
    lora = lora_for({key_of(b, p, i): (6, 8) for b in SDXL_BLOCKS for p in ("to_k", "to_v") for i in (0, 9)})
    tensors = {
        "lora_unet_" + name.removeprefix("diffusion_model.").replace(".", "_", name.count(".") - depth): t
        for name, t in to_comfyui(lora).items()
        for depth in [2 if name.endswith("alpha") else 3]
    }
    assert "lora_unet_input_blocks_4_1_transformer_blocks_9_attn2_to_v.lora_up.weight" in tensors
    assert_same(read(tensors, THREE), lora)
