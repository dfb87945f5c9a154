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
    assert found["H is"] == "H_o (Eq. 8)" and "H_o (Eq. 8), higher is better" in text
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


def test_a_second_run_draws_only_what_is_new(comfy_host, evaluate, refined, drawn):
    forget(comfy_host)
    first = evaluate(erased_model=refined, synonyms="")
    assert len(drawn) == 12
    drawn.clear()
    assert evaluate(erased_model=refined, synonyms="")[0].replace("0 drawn", "12 drawn") == first[0] and not drawn
    evaluate(erased_model=refined, synonyms="", seeds=3)
    assert {seed for *_, seed in drawn} == {9} and len(drawn) == 6
    drawn.clear()
    evaluate(erased_model=refined, synonyms="", keep="cat, wolf, rose")
    assert {prompt for _, prompt, _ in drawn} == {"a photo of the rose"} and len(drawn) == 4
    drawn.clear()
    # Another model is drawn anew, the base model is not; another setting is another picture.
    evaluate(synonyms="", erased_model=refined, seeds=1, cfg=3.0)
    assert len(drawn) == 6


def test_an_interrupt_keeps_what_is_drawn(comfy_host, evaluate, drawn, monkeypatch):
    """The host's own interrupt, in the middle of the second batch: the first is not drawn again."""
    from comfy import model_management

    forget(comfy_host)
    gallery = comfy_host.module("nodes.gallery")
    sampled, batches = gallery.sampled, []

    def interrupting(*args, **kwargs):
        batches.append(1)
        if len(batches) == 2:
            model_management.interrupt_current_processing()
        return sampled(*args, **kwargs)

    monkeypatch.setattr(gallery, "sampled", interrupting)
    with pytest.raises(model_management.InterruptProcessingException):
        evaluate(batch_size=3, synonyms="")
    assert len(drawn) == 6
    drawn.clear()
    evaluate(batch_size=3, synonyms="")
    assert len(drawn) == 3


def test_samplers_that_draw_noise_are_not_batched(comfy_host, demo, evaluate):
    """A picture is the one that a KSampler draws alone, whatever else is asked for."""
    forget(comfy_host)
    assert comfy_host.module("nodes.gallery").draws_noise("euler_ancestral")
    assert not any(comfy_host.module("nodes.gallery").draws_noise(name) for name in ("euler", "ddim", "uni_pc"))
    evaluate(synonyms="", keep="cat", sampler_name="euler_ancestral")
    model, clip, vae = demo
    kept = [picture for picture, _ in comfy_host.module("nodes.gallery")._pictures._entries.values()]
    for place, (name, seed) in enumerate((("dog", 7), ("dog", 8), ("cat", 7), ("cat", 8))):
        latents = comfy_host.sample(
            model, clip, f"a photo of the {name}", seed=seed, steps=6, sampler="euler_ancestral"
        )
        expected = comfy_host.decode(vae, latents)[0].movedim(0, -1) * 255
        assert float((kept[place].float() - expected).abs().max()) <= 1


def test_aliases_and_sizes(comfy_host, evaluate, judges):
    """Aliases are a line of their own; pictures of another size are scaled for the judge."""
    aliased = concepts(comfy_host, "dog | canine -> sky\nship")
    node = evaluate(concepts=aliased, synonyms="dog: hound, canine", keep="", width=128, height=64, seeds=1)
    found = json.loads(node[1])
    groups = {entry["name"]: (entry["group"], entry["label"]) for entry in found["by name"]}
    assert groups == {
        "dog": ("erased", "dog"),
        "canine": ("alias", "dog"),
        "hound": ("synonym", "dog"),
        "ship": ("erased", "ship"),
    }
    assert found["top-1"]["Acc_alias"]["base"]["value"] is not None
    assert math.isnan(node[4]) and math.isnan(node[6]) and "Acc_s" not in node[0]
    assert found["kept pictures"]["paired distance"] is None
    # Rows of pictures twice as wide as high, two a row.
    assert node[2].shape[2] >= 2 * 256


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


def test_clip_by_names_and_scores(comfy_host, demo, evaluate, tiny_clip, refined):
    """Against transformers' own forward pass over pictures and texts together."""
    from transformers import CLIPModel, CLIPProcessor

    node = evaluate(judge="CLIP", judge_file="tiny_clip", erased_model=refined)
    found = json.loads(node[1])
    model, processor = CLIPModel.from_pretrained(tiny_clip), CLIPProcessor.from_pretrained(tiny_clip)
    names = ["dog", "cat", "wolf"]
    prompts = [f"a photo of the {name}" for name in ("dog", "canine", "hound", "cat", "wolf")]
    _, clip, vae = demo
    for entry, prompt in zip(found["by name"], prompts, strict=True):
        latents = [comfy_host.sample(refined, clip, prompt, seed=seed, steps=6) for seed in (7, 8)]
        pictures = (comfy_host.decode(vae, torch.cat(latents)) * 255).round().to(torch.uint8)
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
    pictures = [picture for picture, _ in comfy_host.module("nodes.gallery")._pictures._entries.values()]
    model = AutoModelForImageClassification.from_pretrained(folder)
    processor = ViTImageProcessor.from_pretrained(folder)
    with torch.no_grad():
        batch = processor([picture.movedim(-1, 0) for picture in pictures], return_tensors="pt")
        possible = model(**batch).logits.softmax(-1)
    for place, entry in enumerate(found["by name"]):
        assert entry["probability"]["base"] == pytest.approx(float(possible[place, place]), abs=1e-4)
        assert entry["top-1"]["base"] == float(possible[place].argmax() == place)
    # Only the folder is listed, not the weights in it.
    assert not any("tiny_vit/" in name for name in comfy_host.module("nodes.judge_files").judge_files())


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
