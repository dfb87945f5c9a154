"""The written files where they are used: peft itself, and the host's own loader."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from mace.formats.lora_layouts import (
    diffusers_module,
    to_comfyui,
    to_peft,
)
from mace.formats.lora_reading import read
from mace.method.lora import merge
from tests.lora_cases import FOUR, lora_for, sd1_lora, seeded, write

# peft


def tree(shapes):
    """A module with the given linear layers by dotted name, float64."""
    root = torch.nn.Module()
    for name, (d_out, d) in shapes.items():
        *path, last = name.split(".")
        at = root
        for part in path:
            if not hasattr(at, part):
                at.add_module(part, torch.nn.Module())
            at = getattr(at, part)
        at.add_module(last, torch.nn.Linear(d, d_out, bias=False, dtype=torch.float64))
    root.forward = lambda x: {name: root.get_submodule(name)(x) for name in shapes}
    return root


def unet_like(lora):
    """(module, {module's name: key}): the LoRA's projections by diffusers' names, among attn1's, which have none."""
    keys = {diffusers_module(key, FOUR): key for key in lora}
    others = [name.replace("attn2", "attn1") for name in keys] + ["conv_in", "mid_block.attentions.0.to_k"]
    torch.manual_seed(0)
    return tree({name: (6, 8) for name in [*keys, *others]}), keys


def test_peft_loads_what_is_written(tmp_path):
    peft = pytest.importorskip("peft")
    lora = sd1_lora()
    model, keys = unet_like(lora)
    weights = {
        name: module.weight.detach().clone() for name, module in model.named_modules() if hasattr(module, "weight")
    }
    tensors, config = to_peft(lora, FOUR)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    loaded = peft.PeftModel.from_pretrained(model, tmp_path, autocast_adapter_dtype=False)
    x = torch.randn(5, 8, generator=seeded(1), dtype=torch.float64)
    outputs = loaded(x)
    assert len(outputs) == len(weights)
    for name, weight in weights.items():
        expected = merge(weight, *lora[keys[name]]) if name in keys else weight
        # The adapter itself runs in float32.
        torch.testing.assert_close(outputs[name], x @ expected.T, rtol=1e-5, atol=1e-5)


def test_peft_takes_the_state_dict_with_no_key_left(tmp_path):
    peft = pytest.importorskip("peft")
    lora = sd1_lora()
    tensors, config = to_peft(lora, FOUR)
    model = peft.get_peft_model(unet_like(lora)[0], peft.LoraConfig(**config))
    result = peft.set_peft_model_state_dict(model, tensors)
    assert result.unexpected_keys == []
    assert [name for name in result.missing_keys if "lora" in name] == []
    saved = peft.get_peft_model_state_dict(model)
    assert saved.keys() == tensors.keys()
    assert all(torch.equal(saved[name].float(), tensors[name]) for name in tensors)


@pytest.mark.parametrize(
    "options",
    [
        {"r": 4, "lora_alpha": 2},
        {"r": 4, "lora_alpha": 3, "use_rslora": True},
        {
            "r": 2,
            "lora_alpha": 3,
            "rank_pattern": {"to_v": 3, r"up_blocks\.\d\..*to_k": 1},
            # "attn2" is not the end of a name, "2.to_v" no whole parts of one: peft passes over both.
            "alpha_pattern": {"attn2": 90, "2.to_v": 80, "up_blocks.1.attentions.0.*to_k": 7, "attn2.to_v": 5},
        },
    ],
)
def test_what_peft_saves_is_read(tmp_path, options):
    peft = pytest.importorskip("peft")
    lora = sd1_lora()
    module, keys = unet_like(lora)
    weights = {name: module.get_submodule(name).weight.detach().clone() for name in keys}
    config = peft.LoraConfig(target_modules=["attn2.to_k", "attn2.to_v"], init_lora_weights=False, **options)
    model = peft.get_peft_model(module, config)
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    found = read(tensors, FOUR, json.loads((tmp_path / "adapter_config.json").read_text()))
    assert found.keys() == lora.keys()
    x = torch.randn(5, 8, generator=seeded(1), dtype=torch.float64)
    outputs = model(x)
    for name, key in keys.items():
        torch.testing.assert_close(outputs[name], x @ merge(weights[name], *found[key]).T, rtol=1e-5, atol=1e-6)
    plain = merge(weights[name], tensors[f"base_model.model.{name}.lora_B.weight"], found[key][1])
    assert (outputs[name] - x @ plain.T).abs().max() > 0.1  # the scale is not 1


@pytest.mark.parametrize("begun", ["pissa", "olora", "gaussian"])
def test_loras_of_changed_weights_are_read_where_peft_made_them_plain(tmp_path, begun):
    """What peft's own model gives, as differences to the weights that the model had before."""
    peft = pytest.importorskip("peft")
    module, keys = unet_like(sd1_lora())
    module.float()
    weights = {name: module.get_submodule(name).weight.detach().double() for name in keys}
    config = peft.LoraConfig(r=2, lora_alpha=2, target_modules=["attn2.to_k", "attn2.to_v"], init_lora_weights=begun)
    model = peft.get_peft_model(module, config)
    model.save_pretrained(tmp_path / "begun")
    with torch.no_grad():
        for name, factor in model.named_parameters():
            if "lora_B" in name:
                factor.add_(torch.randn(factor.shape, generator=seeded(2), dtype=factor.dtype))
    layers = {key: model.base_model.model.get_submodule(name) for name, key in keys.items()}
    merged = {key: layer.base_layer.weight + layer.get_delta_weight("default") for key, layer in layers.items()}
    model.save_pretrained(tmp_path / "trained")
    # It names them as files of the model that it makes plain.
    begun_at = str(tmp_path / "begun") if begun in ("pissa", "olora") else None
    model.save_pretrained(tmp_path / "plain", path_initial_model_for_weight_conversion=begun_at)

    def found(folder):
        stated = json.loads((tmp_path / folder / "adapter_config.json").read_text())
        return read(load_file(tmp_path / folder / "adapter_model.safetensors"), FOUR, stated)

    for name, key in keys.items():
        torch.testing.assert_close(
            merge(weights[name], *found("plain")[key]), merged[key].detach().double(), rtol=1e-4, atol=1e-5
        )
    if begun_at:
        with pytest.raises(ValueError, match=f"init_lora_weights {begun}, whose LoRA is added to weights that it cha"):
            found("trained")


# The host


def host_weights(model, tensors, keys):
    """Each key's weight with the file's patches, by the host's own map and loader; and the keys it left."""
    import comfy.lora

    names = comfy.lora.model_lora_keys_unet(model.model, {})
    patches = comfy.lora.load_lora(tensors, names)
    patched = model.clone()
    assert set(patched.add_patches(patches, 1.0)) == set(keys) == set(patches)
    found = {}
    for key in keys:
        base, *added = patched.get_key_patches(key)[key]
        found[key] = comfy.lora.calculate_weight(added, base[0].float().clone(), key)
    return found


def demo_lora(model, scale=0.1):
    # Without patches, whichever patched clone of the model the host has loaded now.
    state = {key: first[0] for key, (first, *_) in model.get_key_patches("diffusion_model.").items()}
    shapes = {k: tuple(state[k].shape) for k in state if re.search(r"attn2\.to_[kv]\.weight$", k)}
    assert len(shapes) >= 4
    return {key: (scale * up, down) for key, (up, down) in lora_for(shapes).items()}, state


@pytest.mark.host
@pytest.mark.parametrize("layout", ["comfyui", "kohya"])
@pytest.mark.parametrize("alpha", [None, 3.0])
def test_the_host_makes_the_same_weights_of_the_file(comfy_host, demo, caplog, layout, alpha):
    model = demo[0]
    blocks = model.model.model_config.unet_config["num_res_blocks"]
    lora, state = demo_lora(model)
    tensors, _ = write(layout, lora, blocks)
    if alpha is not None:
        tensors |= {name: torch.tensor(alpha) for name in tensors if name.endswith(".alpha")}
    with torch.inference_mode():
        weights = host_weights(model, tensors, list(lora))
    assert not [r for r in caplog.records if "lora key not loaded" in r.getMessage()]
    for key, (up, down) in read(tensors, blocks).items():
        torch.testing.assert_close(weights[key], merge(state[key].float(), up, down), rtol=1e-5, atol=1e-6)
        if alpha is None:
            torch.testing.assert_close(weights[key], merge(state[key].float(), *lora[key]), rtol=1e-5, atol=1e-6)
        assert (weights[key] - state[key].float()).abs().max() > 1e-3


@pytest.mark.host
def test_the_hosts_node_loads_a_lora_model(comfy_host, demo):
    from comfy_extras.nodes_train import LoraModelLoader

    model = demo[0]
    lora, state = demo_lora(model)
    with torch.inference_mode():
        (patched,) = LoraModelLoader.execute(model, to_comfyui(lora), 1.0, False).result
    assert {key for key in patched.patches if patched.patches[key]} >= set(lora)
    assert not model.patches
