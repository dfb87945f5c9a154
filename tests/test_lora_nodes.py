"""Saving and loading sets of erasure LoRAs in the real host, and the model's family."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from tests.lora_node_cases import COMFYUI, assert_same_lora, load, make_set, save

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def made(comfy_host, demo):
    return make_set(comfy_host, demo)


# Family


def test_the_demo_models_family(comfy_host, demo):
    family, files = comfy_host.module("nodes.host.model.family"), comfy_host.module("mace.formats.lora_layouts")
    model = demo[0]
    config = model.model.model_config.unet_config
    assert family.family(model) is files.SD1
    assert family.res_blocks(model) == tuple(config["num_res_blocks"])


@pytest.mark.parametrize(
    "kind, width, prediction, name, expected",
    [
        ("BaseModel", 768, "EPS", "SD1", "epsilon"),
        ("BaseModel", 1024, "EPS", "SD2", "epsilon"),
        ("BaseModel", 1024, "V_PREDICTION", "SD2_V", "v"),
        ("BaseModel", 768, "V_PREDICTION", None, None),
        ("BaseModel", 512, "EPS", None, None),
        ("SDXL", 2048, "EPS", "SDXL", "epsilon"),
        ("SDXL", 2048, "V_PREDICTION", "SDXL", "v"),
        ("SDXL", 2048, "EDM", "SDXL", "edm"),
        ("SDXLRefiner", 1280, "EPS", None, None),
    ],
)
def test_families(comfy_host, kind, width, prediction, name, expected):
    import comfy.model_base

    network = object.__new__(getattr(comfy.model_base, kind))
    network.__dict__ |= {
        "model_type": comfy.model_base.ModelType[prediction],
        "model_config": SimpleNamespace(
            unet_config={"context_dim": width, "num_res_blocks": 2, "channel_mult": [1, 2, 4]}
        ),
    }
    model = SimpleNamespace(model=network, object_patches={})
    found = comfy_host.module("nodes.host.model.family").family(model)
    assert comfy_host.module("nodes.host.model.family").res_blocks(SimpleNamespace(model=network)) == (2, 2, 2)
    if name is None:
        assert found is None
    else:
        base = getattr(comfy_host.module("mace.formats.lora_layouts"), name)
        assert (found.architecture, found.version, found.prediction) == (base.architecture, base.version, expected)


def test_a_model_that_is_no_unet(comfy_host):
    model = SimpleNamespace(model=SimpleNamespace(model_config=SimpleNamespace(unet_config={"image_model": "flux"})))
    with pytest.raises(ValueError, match="no Stable Diffusion UNet"):
        comfy_host.module("nodes.host.model.family").res_blocks(model)


# A set


def test_saved_and_loaded(comfy_host, made):
    (path,), lines = save(comfy_host, made, "mace_loras/set", moments=True)
    assert path.name == "set_00001_.safetensors" and lines == []
    found, report = load(comfy_host, path)
    assert found.concepts == made.concepts and found.blocks == made.blocks and found.base == made.base
    for a, b in zip(found.loras, made.loras, strict=True):
        assert_same_lora(a.lora, b.lora)
        assert torch.equal(a.losses, b.losses) and a.settings == b.settings and a.refined_on == "c0ffee"
        assert all(torch.equal(getattr(a.moments, n), getattr(b.moments, n)) for n in ("cross", "paired", "total"))
    assert found.recipe.digest == "c0ffee" and found.recipe.weights == made.recipe.weights
    assert torch.equal(found.recipe.fingerprint, made.recipe.fingerprint)
    assert "2 concepts: dog, hot air balloon!" in report and "rank 1, 2; moments of 2 of 2" in report
    assert "prompts" not in report


def test_without_moments_the_file_is_small(comfy_host, made):
    (path,), _ = save(comfy_host, made, "mace_loras/small")
    found, report = load(comfy_host, path)
    assert all(erasure.moments is None for erasure in found.loras) and "moments of 0 of 2" in report
    assert path.stat().st_size < 1 << 20
    (again,), lines = save(comfy_host, found, "mace_loras/small", moments=True)
    assert again.name == "small_00002_.safetensors"
    assert lines == ["without moments, which are not at hand: dog, hot air balloon!"]


def test_changed_prompts_are_reported(comfy_host, made, monkeypatch):
    (path,), _ = save(comfy_host, made, "mace_loras/prompts")
    monkeypatch.setitem(comfy_host.module("mace.concepts.templates").TEMPLATES, "object", ("other {}",))
    _, report = load(comfy_host, path)
    assert "reads concepts in other prompts" in report and "dog, hot air balloon!" in report


def test_chained_sets(comfy_host, made):
    (one,), _ = save(comfy_host, replace(made, loras=made.loras[:1]), "mace_loras/one")
    (two,), _ = save(comfy_host, replace(made, loras=made.loras[1:]), "mace_loras/two")
    both, report = load(comfy_host, two, more=load(comfy_host, one)[0])
    assert both.concepts == made.concepts and "with those before: 2 concepts" in report
    with pytest.raises(ValueError, match="'dog' has an erasure LoRA in both"):
        load(comfy_host, one, more=both)


def test_files_that_are_no_set(comfy_host, made):
    folder = comfy_host.base / "output/mace_loras"
    (path,), _ = save(comfy_host, made, "mace_loras/whole")
    (folder / "cut.safetensors").write_bytes(path.read_bytes()[:-100])
    (folder / "text.safetensors").write_bytes(b"hello")
    for name in ("cut", "text"):
        with pytest.raises(ValueError, match=f"{name}.safetensors is not a safetensors file or is damaged"):
            load(comfy_host, folder / f"{name}.safetensors")
    (lora, _), _ = save(comfy_host, made, "mace_loras/comfy", COMFYUI)
    with pytest.raises(ValueError, match="one LoRA in comfyui's layout"):
        load(comfy_host, lora)


def test_the_node_runs_again_when_the_file_changes(comfy_host, made):
    (path,), _ = save(comfy_host, made, "mace_loras/stamp")
    node = comfy_host.node_classes["MACE_LoadLoras"]
    before = node.fingerprint_inputs(loras_name=path.name)
    assert before == node.fingerprint_inputs(loras_name=path.name, more=None) and before[0] == str(path)
    path.write_bytes(path.read_bytes() + b"\0")
    assert node.fingerprint_inputs(loras_name=path.name) != before
