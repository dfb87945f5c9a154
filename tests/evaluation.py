"""Fixtures of the tests of Evaluate Erasure: the node on a dog, and what it draws."""

import shutil
from pathlib import Path

import pytest

from tests.test_refine_node import concepts, refine

ASSET = Path(__file__).parent.parent / "assets/demo/judge.safetensors"
# Enough for the judge to know what the demo model draws.
STEPS = 4
SETTINGS = dict(
    synonyms="dog: canine, hound",
    keep="cat, wolf",
    prompts="a photo of the {}",
    seed=7,
    seeds=2,
    width=64,
    height=64,
    steps=STEPS,
    cfg=4.0,
    sampler_name="ddim",
    scheduler="normal",
    batch_size=8,
    judge="classifier file",
    judge_file="judge.safetensors",
    threshold=0.6,
)


@pytest.fixture(scope="module")
def judges(comfy_host):
    """The host's models/mace_judges, with the demo's judge in it."""
    folder = comfy_host.base / "models/mace_judges"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(ASSET, folder / ASSET.name)
    return folder


@pytest.fixture(scope="module")
def dog(comfy_host):
    return concepts(comfy_host, "dog -> sky")


@pytest.fixture(scope="module")
def refined(comfy_host, demo, dog):
    """A refinement strong enough to take the dog out of the whole prompt."""
    return refine(comfy_host, *demo[:2], dog)[0]


@pytest.fixture
def evaluate(comfy_host, demo, dog, judges):
    """The node, with the base model as the erased one where nothing else is said."""
    model, clip, vae = demo

    def run(**more):
        common = dict(model=model, erased_model=model, clip=clip, vae=vae, concepts=dog)
        return comfy_host.run("MACE_EvaluateErasure", **{**common, **SETTINGS, **more})

    return run


@pytest.fixture
def drawn(comfy_host, monkeypatch):
    """(title of the model, prompt, seed) of every picture that is drawn from here on."""
    gallery = comfy_host.module("nodes.host.gallery")
    asked, draw = [], gallery.Gallery._draw

    def watched(self, part, keys):
        asked.extend((self.title, *question) for question in part)
        return draw(self, part, keys)

    monkeypatch.setattr(gallery.Gallery, "_draw", watched)
    return asked


def forget(host):
    """Drop all pictures and what was seen in them."""
    gallery = host.module("nodes.host.gallery")
    gallery._pictures.clear()
    gallery._seen.clear()
