"""The judges of Evaluate Erasure in the real host: CLIP, NudeNet, classifiers, and what is wrong with their files."""

import json
import math
import shutil
import sys
from pathlib import Path

import pytest
import torch

from tests.evaluation import ASSET, STEPS, forget

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def tiny_clip(judges):
    """A small CLIP of random weights, as transformers saves it, with the host's own tokenizer."""
    import comfy.sd1_clip
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    layers = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, projection_dim=12)
    config = CLIPConfig(
        text_config=dict(**layers, eos_token_id=49407), vision_config=dict(**layers, image_size=32, patch_size=8)
    )
    config.projection_dim = 12
    torch.manual_seed(0)
    folder = judges / "tiny_clip"
    CLIPModel(config).eval().save_pretrained(folder)
    tokenizer = CLIPTokenizer.from_pretrained(Path(comfy.sd1_clip.__file__).parent / "sd1_tokenizer")
    image = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(image, tokenizer).save_pretrained(folder)
    return folder


@pytest.mark.long
def test_clip_by_names_and_scores(comfy_host, demo, evaluate, tiny_clip, refined):
    """Against transformers' own forward pass over pictures and texts together."""
    from transformers import CLIPModel, CLIPProcessor

    node = evaluate(judge="CLIP", judge_file="tiny_clip", erased_model=refined, seeds=1)
    found = json.loads(node[1])
    model, processor = CLIPModel.from_pretrained(tiny_clip), CLIPProcessor.from_pretrained(tiny_clip)
    names = ["dog", "cat", "wolf"]
    prompts = [f"a photo of the {name}" for name in ("dog", "canine", "hound", "cat", "wolf")]
    _, clip, vae = demo
    for entry, prompt in zip(found["by name"], prompts, strict=True):
        latents = comfy_host.sample(refined, clip, prompt, seed=7, steps=STEPS)
        pictures = (comfy_host.decode(vae, latents) * 255).round().to(torch.uint8)
        texts = [f"a photo of {name}" for name in names] + [prompt]
        batch = processor(text=texts, images=list(pictures), return_tensors="pt", padding=True)
        with torch.no_grad():
            logits = model(**batch).logits_per_image
        scores = 100 * logits[:, 3] / model.logit_scale.exp()
        probabilities = logits[:, :3].softmax(-1)
        place = names.index(entry["label"])
        assert entry["CLIP score"]["erased"] == pytest.approx(float(scores.mean()), abs=0.2)
        assert entry["probability"]["erased"] == pytest.approx(float(probabilities[:, place].mean()), abs=2e-3)
    scores = {entry["name"]: entry["CLIP score"]["erased"] for entry in found["by name"]}
    summary = found["CLIP score"]["H_a"]["erased"]["value"]
    assert summary == pytest.approx((scores["cat"] + scores["wolf"]) / 2 - scores["dog"], abs=1e-4)
    assert "CLIP_e" in node[0] and "H_a" in node[0]


def test_a_classifier_of_transformers(comfy_host, evaluate, judges):
    """A small network of random weights: its classes by any of their words, its probabilities as it gives them."""
    from transformers import AutoModelForImageClassification, ViTConfig, ViTForImageClassification, ViTImageProcessor

    labels = {0: "dog, domestic dog", 1: "cat", 2: "timber wolf, wolf"}
    config = ViTConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8
    )
    config.id2label, config.label2id = labels, {name: place for place, name in labels.items()}
    folder = judges / "tiny_vit"
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    forget(comfy_host)
    node = evaluate(judge_file="tiny_vit", synonyms="", seeds=1)
    found = json.loads(node[1])
    pictures = [picture for picture, *_ in comfy_host.module("nodes.host.gallery")._pictures._entries.values()]
    model = AutoModelForImageClassification.from_pretrained(folder)
    processor = ViTImageProcessor.from_pretrained(folder)
    with torch.no_grad():
        batch = processor([picture.movedim(-1, 0) for picture in pictures], return_tensors="pt")
        possible = model(**batch).logits.softmax(-1)
    for place, entry in enumerate(found["by name"]):
        assert entry["probability"]["base"] == pytest.approx(float(possible[place, place]), abs=1e-4)
        assert entry["top-1"]["base"] == float(possible[place].argmax() == place)
    # Only the folder is listed, not the weights in it.
    assert not any("tiny_vit/" in name for name in comfy_host.module("nodes.host.judges.judge_files").judge_files())


def test_missing_files_and_names(comfy_host, demo, evaluate, judges, tiny_clip):
    def check(**inputs):
        return comfy_host.validate("MACE_EvaluateErasure", **{**dict(judge="CLIP", judge_file="none"), **inputs})

    assert "needs one: put a CLIP model's folder" in check()
    assert "needs one: put a judge's .safetensors" in check(judge="classifier file")
    assert "'gone' is not there any more" in check(judge_file="gone")
    assert "needs a folder" in check(judge_file="judge.safetensors")
    assert "none of CLIP, NudeNet" in check(judge="me")
    assert check(judge="NudeNet") is True and check(judge_file="tiny_clip") is True
    assert "synonyms: line 1" in check(judge="NudeNet", synonyms="dog")
    assert "prompts: line 1" in check(judge="NudeNet", prompts="a dog")
    with pytest.raises(ValueError, match="the judge judge.safetensors knows no 'unicycle': take it out"):
        evaluate(keep="unicycle")
    with pytest.raises(ValueError, match="there is one alone"):
        evaluate(keep="", synonyms="", judge="CLIP", judge_file="tiny_clip")
    with pytest.raises(ValueError, match="the vae input is empty"):
        evaluate(vae=None)
    with pytest.raises(ValueError, match="tokens, the text encoder takes 75"):
        evaluate(prompts="{} " + "photo " * 80)


def test_damaged_judges(evaluate, judges, tiny_clip):
    (judges / "broken.safetensors").write_bytes(b"nothing")
    shutil.copyfile(ASSET.parent / "mace_demo_loras.safetensors", judges / "loras.safetensors")
    with pytest.raises(ValueError, match="broken.safetensors is not a safetensors file or is damaged"):
        evaluate(judge_file="broken.safetensors")
    with pytest.raises(ValueError, match="is not a judge's file: its metadata lacks concepts, styles"):
        evaluate(judge_file="loras.safetensors")
    for name, gone in (("no_tokens", "tokenizer*"), ("no_weights", "model.safetensors")):
        folder = judges / name
        shutil.copytree(tiny_clip, folder, dirs_exist_ok=True)
        for path in folder.glob(gone):
            path.unlink()
        with pytest.raises(ValueError, match=f"{name} cannot be read as a CLIP model"):
            evaluate(judge="CLIP", judge_file=name)
    # A vision tower alone, as many files in clip_vision are: half of the weights would be random.
    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny_clip, judges / "half", dirs_exist_ok=True)
    tensors = {k: v for k, v in load_file(tiny_clip / "model.safetensors").items() if not k.startswith("text_")}
    save_file(tensors, judges / "half/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="half lacks weights of a CLIP model: text_"):
        evaluate(judge="CLIP", judge_file="half")
    shutil.copytree(judges / "half", judges / "other", dirs_exist_ok=True)
    config = json.loads((judges / "other/config.json").read_text())
    (judges / "other/config.json").write_text(json.dumps({**config, "model_type": "bert"}))
    with pytest.raises(ValueError, match="other is a model of the type bert"):
        evaluate(judge="CLIP", judge_file="other")


def test_without_nudenet(evaluate, monkeypatch):
    monkeypatch.setitem(sys.modules, "nudenet", None)
    with pytest.raises(ValueError, match="python -m pip install nudenet"):
        evaluate(judge="NudeNet", judge_file="none")


def test_detections_are_counted(evaluate, refined, monkeypatch):
    """With a detector that answers in the form of NudeNet 3.4, by how blue a picture is."""

    class NudeDetector:
        def detect(self, image):
            assert image.dtype.name == "uint8" and image.shape == (64, 64, 3) and image.flags["C_CONTIGUOUS"]
            blue = float(image[..., 0].mean()) / 255
            face = {"class": "FACE_FEMALE", "score": 0.9, "box": [1, 2, 3, 4]}
            return [face, {"class": "BELLY_EXPOSED", "score": blue, "box": [0, 0, 9, 9]}]

    module = type(sys)("nudenet")
    module.NudeDetector = NudeDetector
    monkeypatch.setitem(sys.modules, "nudenet", module)
    node = evaluate(judge="NudeNet", judge_file="none", erased_model=refined, threshold=0.0)
    found = json.loads(node[1])
    assert found["detections"]["erased"]["base"]["Belly"] == 6 and found["detections"]["kept"]["erased"]["Total"] == 4
    assert found["detections a picture"]["erased"]["change"] == {"value": 0, "low": 0, "high": 0}
    assert all(math.isnan(value) for value in node.result[3:]) and "Belly" in node[0]
    none = json.loads(evaluate(judge="NudeNet", judge_file="none", erased_model=refined, threshold=1.0)[1])
    assert none["detections"]["erased"]["base"]["Total"] == 0
