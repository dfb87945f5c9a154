"""Exporting the change of a model as a LoRA in the real host."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tests.lora_node_cases import COMFYUI, KOHYA, PEFT, imported, make_set, shapes_of
from tests.test_refine_node import concepts, effective, refine

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("few_templates")]


@pytest.fixture(scope="module")
def made(comfy_host, demo):
    return make_set(comfy_host, demo)


@pytest.fixture(scope="module")
def edited(comfy_host, demo):
    """The demo model refined, which changes all its projections."""
    return refine(comfy_host, demo[0], demo[1], concepts(comfy_host, "dog -> sky"), mu="10")[0]


def export(host, base, model, rank=4, format=COMFYUI, prefix="loras/change"):
    out = host.run("MACE_ExportLora", base=base, edited=model, rank=rank, format=format, filename_prefix=prefix)
    path, *lines = out.ui.as_dict()["text"][0].split("\n")
    return Path(path), "\n".join(lines)


@pytest.mark.parametrize("format", [COMFYUI, KOHYA])
def test_the_exported_lora_is_the_best_of_its_rank(comfy_host, demo, edited, made, format):
    path, report = export(comfy_host, demo[0], edited, 4, format, f"loras/best_{format[:3]}")
    with torch.inference_mode():
        patched, _ = comfy_host.nodes.LoraLoader().load_lora(demo[0], None, path.name, 1.0, 0)
    missed = whole = 0.0
    layers = {}
    for key in shapes_of(comfy_host, demo[0]):
        base = effective(demo[0], key)
        delta = effective(edited, key) - base
        u, s, v = torch.linalg.svd(delta.double(), full_matrices=False)
        best = (u[:, :4] * s[:4]) @ v[:4]
        torch.testing.assert_close(effective(patched, key) - base, best.float(), rtol=1e-3, atol=1e-5)
        missed, whole = missed + s[4:].square().sum().item(), whole + s.square().sum().item()
        layers[key] = (s[4:].square().sum() / s.square().sum()).sqrt().item()
    worst = max(layers, key=layers.get)
    overall = (missed / whole) ** 0.5
    assert 0.01 < overall < 1
    assert f"8 of 8 matrices differ; rank 4 misses {overall:.2%} of the change" in report
    assert f"worst: {layers[worst]:.2%} in {worst}" in report and "save a checkpoint" in report
    with safe_open(path, framework="pt") as opened:
        record = json.loads(opened.metadata()["mace.change"])
    assert record["residual"] == pytest.approx(overall, rel=1e-4)
    assert record["rank"] == 4 and record["stages"][0]["concepts"][0]["target"] == "dog"


def test_a_change_of_low_rank_is_exported_exactly(comfy_host, demo, made):
    """A LoRA of rank 2 on one projection comes back, and the projections that did not change are not in the file."""
    key = next(iter(made.loras[0].lora))
    up, down = made.loras[0].lora[key]
    model = demo[0].clone()
    model.add_patches({key: ("diff", (up @ down,))})
    path, report = export(comfy_host, demo[0], model, 2, PEFT, "loras/low")
    assert "1 of 8 matrices differ" in report and "save a checkpoint" not in report
    found, _ = imported(
        comfy_host, demo[0], path / "adapter_model.safetensors", concepts=concepts(comfy_host, "dog -> sky")
    )
    assert list(found.loras[0].lora) == [key]
    up_found, down_found = found.loras[0].lora[key]
    torch.testing.assert_close(up_found @ down_found, up @ down, rtol=1e-4, atol=1e-5)


def test_a_saved_checkpoint_is_taken_too(comfy_host, demo, edited):
    out = comfy_host.run(
        "MACE_SaveErasedModel",
        model=edited,
        clip=demo[1],
        vae=demo[2],
        filename_prefix="checkpoints/for_export",
        dtype="bf16",
    )
    (saved,) = out.ui["checkpoints"]
    model = comfy_host.load_checkpoint(comfy_host.base / "output" / saved["subfolder"] / saved["filename"])[0]
    path, report = export(comfy_host, demo[0], model, 8)
    assert "8 of 8 matrices differ" in report and path.exists()


def test_models_that_cannot_be_compared(comfy_host, demo, edited):
    with pytest.raises(ValueError, match="read their prompts by the same weights"):
        export(comfy_host, edited, edited)
    key = "diffusion_model.out.2.weight"
    other = edited.clone()
    other.add_patches({key: ("diff", (torch.ones_like(other.model.state_dict()[key]),))})
    with pytest.raises(ValueError, match=f"differ in {key} too"):
        export(comfy_host, demo[0], other)


def test_models_of_other_layers(comfy_host, demo, monkeypatch):
    class Other:
        """A stand-in for a model with other layers or shapes."""

        load_device = demo[0].load_device

        def __init__(self, change):
            self.change = change

    module = comfy_host.module("nodes.files.export_lora")
    check, real = module.check_same, module.key_patches

    def patches_of(model):
        return model.change(real(demo[0])) if isinstance(model, Other) else real(model)

    monkeypatch.setattr(module, "key_patches", patches_of)
    key = "diffusion_model.out.2.weight"

    def reshaped(patches):
        weight, convert = patches[key][0]
        return patches | {key: [(weight[:1], convert)]}

    with pytest.raises(ValueError, match="different models: they have other layers"):
        check(demo[0], Other(lambda p: {k: v for k, v in p.items() if k != key}))
    with pytest.raises(ValueError, match="different models: .*out.2.weight has another shape"):
        check(demo[0], Other(reshaped))


def test_export_can_be_interrupted(comfy_host, demo, edited, monkeypatch):
    from comfy import model_management

    before = sorted(comfy_host.base.rglob("*"))
    calls = []

    def interrupt():
        calls.append(1)
        # check_same asks once for each weight; this is in the third projection of the decomposition.
        if len(calls) > len(demo[0].get_key_patches("diffusion_model.")) + 2:
            raise model_management.InterruptProcessingException()

    monkeypatch.setattr(model_management, "throw_exception_if_processing_interrupted", interrupt)
    with pytest.raises(model_management.InterruptProcessingException):
        export(comfy_host, demo[0], edited)
    assert sorted(comfy_host.base.rglob("*")) == before
