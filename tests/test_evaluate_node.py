"""Evaluate Erasure in the real host, on the trained demo model."""

import json
import math
import shutil
import sys
from pathlib import Path

import pytest
import torch

from tests.judge import Judge
from tests.stages import report
from tests.test_refine_node import concepts, refine

pytestmark = pytest.mark.host

ASSET = Path(__file__).parent.parent / "assets/demo/judge.safetensors"
SETTINGS = dict(
    synonyms="dog: canine, hound",
    keep="cat, wolf",
    prompts="a photo of the {}",
    seed=7,
    seeds=2,
    width=64,
    height=64,
    steps=6,
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
    gallery = comfy_host.module("nodes.gallery")
    asked, draw = [], gallery.Gallery._draw

    def watched(self, part, keys):
        asked.extend((self.title, *question) for question in part)
        return draw(self, part, keys)

    monkeypatch.setattr(gallery.Gallery, "_draw", watched)
    return asked


def forget(host):
    gallery = host.module("nodes.gallery")
    gallery._pictures.clear()
    gallery._seen.clear()


def test_the_base_model_against_itself(comfy_host, demo, evaluate, drawn):
    """Nothing changes; and the numbers are those of the host's own pictures and the judge on them."""
    forget(comfy_host)
    node = evaluate()
    text, results, sheet, acc_e, acc_s, acc_g, h = node.result
    found = json.loads(results)
    model, clip, vae = demo
    judge = Judge(ASSET)
    expected = {}
    for name, label in (("dog", "dog"), ("canine", "dog"), ("hound", "dog"), ("cat", "cat"), ("wolf", "wolf")):
        pictures = [
            comfy_host.decode(vae, comfy_host.sample(model, clip, f"a photo of the {name}", seed=seed, steps=6))
            for seed in (7, 8)
        ]
        probability = judge((torch.cat(pictures) * 255).round() / 255)
        place = judge.names.index(label)
        expected[name] = ((probability.argmax(-1) == place).float().mean(), probability[:, place].mean())
    for entry in found["by name"]:
        right, probability = (float(value) for value in expected[entry["name"]])
        assert entry["top-1"]["base"] == entry["top-1"]["erased"] == right
        assert entry["probability"]["base"] == pytest.approx(probability, abs=1e-3)
    assert acc_e == float(expected["dog"][0])
    assert acc_s == float(expected["cat"][0] + expected["wolf"][0]) / 2
    assert acc_g == float(expected["canine"][0] + expected["hound"][0]) / 2
    parts = (1 - acc_e, acc_s, 1 - acc_g)
    assert h == (0 if min(parts) == 0 else pytest.approx(3 / sum(1 / part for part in parts)))
    for name in ("Acc_e", "Acc_s", "Acc_g", "H"):
        assert found["top-1"][name]["change"] == {"value": 0, "low": 0, "high": 0}
    assert found["kept pictures"]["paired distance"] == 0 and found["kept pictures"]["Frechet distance"] < 1e-6
    assert found["same model"] and "the two models are the same" in text
    # The same content: the erased model's pictures are the base model's.
    assert len(drawn) == 10 and found["pictures"] == {"of each model": 10, "drawn now": 10}
    assert report(node) == text and "Acc_e" in text
    assert sheet.shape[0] == 1 and sheet.shape[3] == 3 and 0 <= float(sheet.min()) < float(sheet.max()) <= 1


def test_a_refined_dog_is_seen_less(evaluate, refined):
    node = evaluate(erased_model=refined, prompts="a photo of the {}\n{}", synonyms="")
    found = json.loads(node[1])
    top = found["top-1"]["Acc_e"]
    assert top["base"]["value"] == 1 and top["erased"]["value"] < 1 and top["change"]["high"] <= 0
    assert found["probability"]["Acc_e"]["change"]["value"] < -0.1
    assert node[3] == top["erased"]["value"] and node[4] >= 0.75 and math.isnan(node[5])
    assert node[6] == pytest.approx(2 / (1 / (1 - node[3]) + 1 / node[4]))
    assert found["top-1"]["Acc_g"]["erased"] == {"value": None, "low": None, "high": None}
    assert 0 < found["kept pictures"]["paired distance"] < 1
