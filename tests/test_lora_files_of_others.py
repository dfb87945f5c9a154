"""LoRA files as other programs write them: names of the factors, scales, and configurations not made for us."""

import json
import time

import pytest
import torch

from mace.formats.lora_layouts import to_comfyui, to_kohya, to_peft
from mace.formats.lora_reading import idle, layout_of, read
from mace.formats.peft_config import PeftScales
from tests.lora_cases import FOUR, SD1_BLOCKS, key_of, sd1_lora, write

MODULE = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"


def same(found, lora, scale=1.0):
    assert found.keys() == lora.keys()
    for key, (up, down) in lora.items():
        torch.testing.assert_close(found[key][0], scale * up)
        assert torch.equal(found[key][1], down)


def named(lora, form, sides):
    """A LoRA under diffusers' module names. form: of a whole name, of module and side.  sides: (up's, down's)."""
    tensors = {}
    for key, pair in lora.items():
        _, block = key.removesuffix(".weight").split("diffusion_model.")
        host, projection = block.split(".transformer_blocks")
        module = f"{SD1_BLOCKS[host]}.transformer_blocks{projection}"
        for side, tensor in zip(sides, pair, strict=True):
            tensors[form(module, side)] = tensor
    return tensors


def old(module, side):
    return module.replace(".to_", ".processor.to_") + f"_lora.{side}.weight"


DIFFUSERS = {
    "peft's names": (lambda module, side: f"unet.{module}.{side}.weight", ("lora_B", "lora_A")),
    "an adapter's name": (lambda module, side: f"unet.{module}.{side}.default_0.weight", ("lora_B", "lora_A")),
    "without unet": (lambda module, side: f"{module}.{side}.weight", ("lora_B", "lora_A")),
    "lora.up": (lambda module, side: f"unet.{module}.{side}.weight", ("lora.up", "lora.down")),
    "linear layer": (lambda module, side: f"unet.{module}.lora_linear_layer.{side}.weight", ("up", "down")),
    "attention processors": (lambda module, side: f"unet.{old(module, side)}", ("up", "down")),
    "attention processors alone": (old, ("up", "down")),
}  # fmt: skip


@pytest.mark.parametrize("case", DIFFUSERS)
def test_diffusers_names(case):
    lora = sd1_lora()
    tensors = named(lora, *DIFFUSERS[case])
    assert layout_of(tensors) == "diffusers"
    same(read(tensors, FOUR), lora)


def test_diffusers_alphas_and_configuration():
    lora = sd1_lora((2,))
    tensors = named(lora, *DIFFUSERS["peft's names"])
    alphas = {name.replace(".lora_A.weight", ".alpha"): torch.tensor(6.0) for name in tensors if "lora_A" in name}
    same(read(tensors | alphas, FOUR), lora, 3.0)
    same(read(tensors, FOUR, {"r": 2, "lora_alpha": 1}), lora, 0.5)


@pytest.mark.parametrize("layout", ["comfyui", "kohya", "peft"])
@pytest.mark.parametrize(
    "sides", [("lora_A", "lora_B"), ("lora_A.default", "lora_B.default"), ("lora_down", "lora_up")]
)
def test_factors_by_any_name_in_any_layout(layout, sides):
    lora = sd1_lora()
    tensors, config = write(layout, lora)
    others = {}
    for name, tensor in tensors.items():
        for own, side in zip(("lora_A", "lora_B", "lora_down", "lora_up"), (*sides, *sides), strict=True):
            if f".{own}.weight" in name:
                name = name.replace(f".{own}.weight", f".{side}.weight")
                break
        others[name] = tensor
    same(read(others, FOUR, config), lora)


def test_two_adapters_in_a_file_are_refused():
    tensors, _ = to_peft(sd1_lora(), FOUR)
    name = next(name for name in tensors if "lora_A" in name)
    with pytest.raises(ValueError, match="name the same weight"):
        read(tensors | {name.replace("lora_A", "lora_A.second"): tensors[name]}, FOUR)


@pytest.mark.parametrize(
    "name",
    [
        f"unet.{MODULE.replace('attn2', 'attn1')}.lora_A.weight",
        f"unet.{MODULE}.lora_magnitude_vector",
        "unet.conv_in.lora_A.weight",
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight",
        "unet.down_blocks.9.attentions.0.transformer_blocks.0.attn2.to_k.lora_A.weight",
        f"unet.{MODULE}.lora_A.a.b.weight",
    ],
)
def test_what_is_elsewhere_is_named(name):
    with pytest.raises(ValueError, match="is no LoRA of a cross-attention"):
        read({name: torch.zeros(2, 2)}, FOUR)


def test_without_an_alpha_it_is_pefts_own():
    """peft.LoraConfig has lora_alpha = 8 where nothing is said."""
    lora = sd1_lora((2,))
    tensors, config = to_peft(lora, FOUR)
    for name in ("lora_alpha", "alpha_pattern"):
        del config[name]
    same(read(tensors, FOUR, config), lora, 4.0)
    same(read(tensors, FOUR, config | {"use_rslora": True}), lora, 8 / 2**0.5)
    peft = pytest.importorskip("peft")
    assert peft.LoraConfig().lora_alpha == 8


def test_what_does_nothing_is_counted():
    lora = sd1_lora()
    assert idle(lora) == 0
    tensors = to_comfyui(lora)
    alphas = [name for name in tensors if name.endswith(".alpha")]
    nothing = tensors | {name: torch.tensor(0.0) for name in alphas}
    assert idle(read(nothing, FOUR)) == len(lora)
    assert idle(read(tensors | {alphas[0]: torch.tensor(0)}, FOUR)) == 1
    kohya, _ = to_kohya(lora, FOUR, None, "x")
    up = next(name for name in kohya if "lora_up" in name)
    assert idle(read(kohya | {up: torch.zeros_like(kohya[up])}, FOUR)) == 1
    assert idle(read(tensors | {alphas[0]: torch.tensor(-1.0)}, FOUR)) == 0


def test_a_scale_beyond_numbers_is_refused():
    tensors = to_comfyui(sd1_lora())
    alpha = next(name for name in tensors if name.endswith(".alpha"))
    with pytest.raises(ValueError, match="times its scale .* is not finite"):
        read(tensors | {alpha: torch.tensor(1e300, dtype=torch.float64)}, FOUR)


EXPRESSIONS = [
    "to_k",
    "attn2",
    "attn2.to_k",
    "2.to_k",
    "attn2_to_k",
    "attn2.to.k",
    MODULE,
    f".{MODULE}",
    MODULE.replace(".", "_"),
    f"unet.{MODULE}",
    r"down_blocks\.\d\..*to_k",
    "down_blocks.*",
    "^down_blocks.*to_k",
    "(attn1|attn2).to_k",
    ".*",
    "",
    ".",
    "to_[kv]",
    "to_k$",
]


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_expressions_mean_what_they_mean_to_peft(expression):
    other_layers = pytest.importorskip("peft.utils.other")
    expected = other_layers.get_pattern_key([expression], MODULE) == expression
    found = PeftScales({"alpha_pattern": {expression: 6}, "lora_alpha": 2}).of(MODULE, 2)
    assert found == (3.0 if expected and expression != MODULE else 1.0) or expression == MODULE and found == 3.0


@pytest.mark.parametrize(
    "expression",
    ["(a+)+$", r"(\w+\.?)+x", "(.*)*y", "(([a-z_0-9]+)*)*!", "|".join(["(.*.*)*z"] * 20), "a" * 2000 + "?"],
)
def test_expressions_that_would_take_for_ever(expression):
    start = time.monotonic()
    config = {"r": 1, "lora_alpha": 1, "rank_pattern": {expression: 3}}
    scales = PeftScales(config)
    try:
        assert [scales.of(f"{MODULE}{'a' * 200}.{n}", 1) for n in range(50)] == [1.0] * 50
    except ValueError as error:
        assert "takes too long to match" in str(error)
    assert time.monotonic() - start < 10


def test_a_table_of_all_names_is_quick():
    """SDXL's: every projection by name."""
    names = [f"down_blocks.{a}.attentions.{b}.attn2.to_{c}" for a in range(20) for b in range(20) for c in "kv"]
    scales = PeftScales({"alpha_pattern": dict.fromkeys(names, 3), "rank_pattern": dict.fromkeys(names, 1)})
    start = time.monotonic()
    assert {scales.of(name, 1) for name in names} == {3.0}
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"rank_pattern": [1, 2]}, "rank_pattern is no table"),
        ({"alpha_pattern": "to_k"}, "alpha_pattern is no table"),
        ({"lora_alpha": 10**400}, "no number as alpha"),
        ({"lora_alpha": None}, "no number as alpha"),
        ({"lora_alpha": True}, "no number as alpha"),
        ({"lora_alpha": float("nan")}, "no number as alpha"),
        ({"alpha_pattern": {"to_k": {}}}, "no number as alpha"),
        ({"r": "2"}, "gives rank '2'"),
        ({"rank_pattern": {"(" * 900 + ")" * 900: 1}}, "pattern"),
        ({"rank_pattern": {"a{1}{99999999999999999999}": 1}}, "pattern"),
        ({"rank_pattern": {"to_(k": 1}}, "broken pattern"),
    ],
    ids=range(11),
)
def test_damaged_configurations_are_named(config, message):
    with pytest.raises(ValueError, match=message):
        PeftScales({"r": 2, **config}).of(MODULE, 2)


@pytest.mark.host
def test_the_node_says_what_does_nothing(comfy_host, demo):
    from safetensors.torch import save_file

    from tests.test_refine_node import concepts

    keys = comfy_host.module("nodes.host.model.unet").cross_attention_keys(demo[0])
    state = demo[0].model.state_dict()
    lora = {key: (torch.ones(state[key].shape[0], 1), torch.ones(1, state[key].shape[1])) for key in keys}
    tensors = to_comfyui(lora)
    folder = comfy_host.base / "output/loras"
    folder.mkdir(parents=True, exist_ok=True)
    comfy_host.folder_paths.add_model_folder_path("loras", str(folder))

    def said(name, tensors, metadata=None):
        save_file(tensors, folder / name, metadata)
        given = {"model": demo[0], "lora_name": name, "concepts": concepts(comfy_host, "dog -> sky")}
        out = comfy_host.run("MACE_ImportLora", **given)
        return out.result[0].loras[0].lora, out.ui.as_dict()["text"][0]

    assert "nothing" not in said("all.safetensors", tensors)[1]
    none = {name: torch.zeros(()) if name.endswith("alpha") else t for name, t in tensors.items()}
    assert "it does nothing: alpha is 0" in said("none.safetensors", none)[1]
    some = tensors | {next(name for name in tensors if name.endswith("alpha")): torch.zeros(())}
    assert f"1 of {len(keys)} matrices do nothing" in said("some.safetensors", some)[1]

    module = comfy_host.module("mace.formats.lora_layouts").diffusers_module
    blocks = comfy_host.module("nodes.host.model.family").res_blocks(demo[0])
    theirs = {}
    for key, (up, down) in lora.items():
        theirs[f"unet.{module(key, blocks)}.lora_B.weight"] = up.clone()
        theirs[f"unet.{module(key, blocks)}.lora_A.weight"] = down.clone()
    about = {"lora_adapter_metadata": json.dumps({"unet.r": 1, "unet.lora_alpha": 5, "text_encoder.r": 7})}
    found, text = said("theirs.safetensors", theirs, about)
    assert "Diffusers layout" in text and all(torch.equal(up, torch.full_like(up, 5)) for up, _ in found.values())
    found, _ = said("plain.safetensors", theirs)
    assert all(torch.equal(up, torch.ones_like(up)) for up, _ in found.values())
    for broken in ("{", "[1]", "[" * 100_000):
        with pytest.raises(ValueError, match="lora_adapter_metadata is damaged"):
            said("broken.safetensors", theirs, {"lora_adapter_metadata": broken})
    assert key_of("input_blocks.1.1") in found
