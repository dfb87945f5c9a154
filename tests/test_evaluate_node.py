"""Evaluate Erasure in the real host, on the trained demo model."""

import json
import math

import pytest
import torch

from tests.evaluation import ASSET, STEPS, forget
from tests.judge import Judge
from tests.stages import report
from tests.test_refine_node import concepts

pytestmark = pytest.mark.host


@pytest.mark.long
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
            comfy_host.decode(vae, comfy_host.sample(model, clip, f"a photo of the {name}", seed=seed, steps=STEPS))
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
    settings = dict(erased_model=refined, synonyms="", seeds=1)
    first = evaluate(**settings)
    assert len(drawn) == 6
    drawn.clear()
    assert evaluate(**settings)[0].replace("0 drawn", "6 drawn") == first[0] and not drawn
    evaluate(**{**settings, "seeds": 2})
    assert {seed for *_, seed in drawn} == {8} and len(drawn) == 6
    drawn.clear()
    evaluate(**settings, keep="cat, wolf, rose")
    assert {prompt for _, prompt, _ in drawn} == {"a photo of the rose"} and len(drawn) == 2
    drawn.clear()
    # Another model is drawn anew, the base model is not; another setting is another picture.
    evaluate(**settings, cfg=3.0)
    assert len(drawn) == 6


def test_an_interrupt_keeps_what_is_drawn(comfy_host, evaluate, drawn, monkeypatch):
    """The host's own interrupt, in the middle of the second batch: the first is not drawn again."""
    from comfy import model_management

    forget(comfy_host)
    gallery = comfy_host.module("nodes.host.gallery")
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


def test_fewer_pictures_are_drawn_at_once_where_memory_runs_out(comfy_host, evaluate, monkeypatch):
    """The same pictures, and how many fit is remembered."""
    import comfy.sample

    few = dict(synonyms="", steps=2, batch_size=3)
    forget(comfy_host)
    evaluate(**few)
    kept = comfy_host.module("nodes.host.gallery")._pictures._entries
    expected = {key: picture.float() for key, (picture, *_) in kept.items()}
    forget(comfy_host)
    tried, sample = [], comfy.sample.sample

    def short_of_memory(model, noise, *rest, **more):
        tried.append(len(noise))
        found = sample(model, noise, *rest, **more)
        if len(noise) > 1:
            raise torch.OutOfMemoryError("no memory")
        return found

    monkeypatch.setattr(comfy.sample, "sample", short_of_memory)
    evaluate(**few)
    assert expected.keys() == kept.keys() and len(kept) == 6
    assert all(float((kept[key][0].float() - picture).abs().max()) <= 1 for key, picture in expected.items())
    assert tried == [3, *[1] * 6]


@pytest.mark.long
def test_samplers_that_draw_noise_are_not_batched(comfy_host, demo, evaluate):
    """A picture is the one that a KSampler draws alone, whatever else is asked for."""
    forget(comfy_host)
    draws_noise = comfy_host.module("nodes.host.sampler").draws_noise
    assert draws_noise("euler_ancestral") and not any(map(draws_noise, ("euler", "ddim", "uni_pc")))
    evaluate(synonyms="", keep="cat", sampler_name="euler_ancestral")
    model, clip, vae = demo
    kept = [picture for picture, *_ in comfy_host.module("nodes.host.gallery")._pictures._entries.values()]
    for place, (name, seed) in enumerate((("dog", 7), ("dog", 8), ("cat", 7), ("cat", 8))):
        latents = comfy_host.sample(
            model, clip, f"a photo of the {name}", seed=seed, steps=STEPS, sampler="euler_ancestral"
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
