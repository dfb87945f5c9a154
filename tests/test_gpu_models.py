"""Every kind of UNet, every family's text ports and the baselines that train nothing, on a device: -m gpu."""

import pytest
import torch

from devtools import random_models
from tests import test_baseline_oce, test_baseline_sld, test_baseline_speed, test_baseline_uce
from tests.device import DEVICE, ON_DEVICE
from tests.families import FAMILIES, build, latents, prompt
from tests.kinds import PATCHED, sampled_as
from tests.stages import delta_of
from tests.test_kinds import check_saved, drawn, whole_way
from tests.test_port_families import WITHOUT
from tests.test_refine_node import concepts

pytestmark = ON_DEVICE


@pytest.fixture(autouse=True)
def few(gpu_host, monkeypatch):
    templates = ("a photo of the {}", "the {} on a table", "{}")
    monkeypatch.setitem(gpu_host.module("mace.concepts.concept").TEMPLATES, "object", templates)


@pytest.mark.parametrize("kind", (*random_models.KINDS, *PATCHED))
def test_every_kind_goes_the_whole_way(gpu_host, tmp_path, kind):
    """In the format that the host chooses for the device."""
    base, *how = PATCHED.get(kind, (kind,))
    path = tmp_path / f"{base}.safetensors"
    random_models.make_checkpoint(path, base, small=True)
    model, clip, vae = random_models.load(path, small=True)
    model = sampled_as(model, *how) if how else model
    fused, saved = whole_way(gpu_host, f"gpu_{kind}", model, clip, vae)
    assert torch.isfinite(drawn(gpu_host, fused, clip)).all()
    # The loader rounds what is saved in fp32 to the format it chooses.
    check_saved(gpu_host, model, fused, random_models.load(saved, small=True)[0], rtol=0.01, atol=1e-3)
    saved.unlink()


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in WITHOUT])
def test_text_ports_are_read_on_the_device(gpu_host, monkeypatch, name):
    """All that a call of the model takes lies where the model does."""
    from comfy import model_management

    ports, read = gpu_host.module("nodes.host.model.ports"), gpu_host.module("mace.method.ports").read_features
    with torch.inference_mode():
        model = build(name, monkeypatch)
        given, shapes = prompt(name), latents(name)
        model_management.load_models_gpu([model], force_full_load=True)
        found = ports.ports_by_running(model, given, shapes)
        runs = ports.PromptRuns(model, given, ports.running_side(model, given, shapes), shapes)
        features = read(lambda: runs(0, 0), model.model.diffusion_model, found)
    assert found.names and all(torch.isfinite(call).all() for calls in features for call in calls)
    assert next(model.model.diffusion_model.parameters()).device.type == DEVICE.type


EDITS = {"OCE": test_baseline_oce.run, "SPEED": test_baseline_speed.run, "UCE": test_baseline_uce.edit}


@pytest.mark.parametrize("name", EDITS)
def test_baselines_that_edit(gpu_host, gpu_models, name):
    demo = gpu_models["fp16"]
    chosen = concepts(gpu_host, "dog -> sky")
    found = EDITS[name](gpu_host, demo, chosen, preserve="cat\nwolf")
    edited = found if name == "UCE" else found[0]
    assert edited.patches
    for key in edited.patches:
        change = delta_of(edited, key)
        assert torch.isfinite(change).all() and change.any()


def test_safe_latent_diffusion(gpu_host, gpu_models):
    demo = gpu_models["fp16"]
    guided = test_baseline_sld.guided(gpu_host, demo, text="dog", preset="max")
    one, other = (test_baseline_sld.drawn(gpu_host, demo, model) for model in (demo[0], guided))
    assert torch.isfinite(other).all() and not torch.equal(one, other)
