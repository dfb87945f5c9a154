"""A small SD3 that can draw: erased from in closed form by the nodes, saved as a whole checkpoint, evaluated."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from benchmarks.demo_model.checkpoint import write
from benchmarks.pictures import Studio
from devtools.cache import REPO
from mace.measure.nearby import in_words, moved
from tests.evaluation import SETTINGS
from tests.judge import Judge
from tests.stages import report
from tests.test_refine_node import concepts, refine

pytestmark = pytest.mark.host

COMPACT = REPO / "assets/demo/demo_sd3.safetensors"
SAMPLING = dict(steps=10, cfg=4.0, sampler_name="euler", scheduler="normal")
EDITED = ("diffusion_model.context_embedder.weight", "diffusion_model.y_embedder.mlp.0.weight")
# Table 10's for one object.
WEIGHTS = dict(mu="10", lambda3="0")


@pytest.fixture(scope="module")
def judge():
    return Judge(REPO / "assets/demo/judge.safetensors")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The whole checkpoint's file."""
    path = tmp_path_factory.mktemp("sd3") / "sd3.safetensors"
    write(COMPACT, path)
    return path


@pytest.fixture(scope="module")
def sd3(comfy_host, checkpoint):
    """(MODEL, CLIP, VAE) of it."""
    return comfy_host.load_checkpoint(checkpoint)


def drawn(comfy_host, models, prompts):
    """Pictures [B, 3, 64, 64], a prompt each, with the host's sampler."""
    model, clip, vae = models
    studio = Studio(comfy_host, clip, vae, SAMPLING["steps"], SAMPLING["sampler_name"], pooled=True, channels=16)
    return studio.draw(model, prompts, [0] * len(prompts))


def names(judge, pictures):
    return [judge.names[int(place)] for place in judge(pictures).argmax(-1)]


def test_the_checkpoint_has_all_that_the_host_loads(checkpoint, sd3):
    _, clip, vae = sd3
    with safe_open(checkpoint, "pt") as file:
        written = set(file.keys())
    loaded = {
        f"text_encoders.{name}" for name in clip.cond_stage_model.state_dict() if not name.endswith("logit_scale")
    }
    assert loaded <= written
    assert {f"first_stage_model.{name}" for name in vae.first_stage_model.state_dict()} <= written


def test_it_draws_what_it_was_trained_on(comfy_host, sd3, judge):
    import comfy.model_base

    assert isinstance(sd3[0].model, comfy.model_base.SD3)
    wanted = ["dog", "ship", "rose", "panda", "taxi", "guitar"]
    seen = names(judge, drawn(comfy_host, sd3, [f"a photo of the {name}" for name in wanted]))
    assert sum(a == b for a, b in zip(seen, wanted, strict=True)) >= 5


@pytest.fixture(scope="module")
def without_dog(comfy_host, sd3):
    return refine(comfy_host, *sd3[:2], concepts(comfy_host, "dog -> sky"), **WEIGHTS)


def test_the_concept_goes_and_others_stay(comfy_host, sd3, judge, without_dog):
    assert "their own words too" in report(without_dog) and "the pooled text too" in report(without_dog)
    assert sorted(without_dog[0].patches) == list(EDITED)
    erased = (without_dog[0], *sd3[1:])
    asked = ["a photo of the dog", "an illustration of the dog", "the dog in the forest", "dog"]
    assert names(judge, drawn(comfy_host, erased, asked)).count("dog") == 0
    kept = ["ship", "rose", "panda", "taxi", "guitar"]
    seen = names(judge, drawn(comfy_host, erased, [f"a photo of the {name}" for name in kept]))
    assert sum(a == b for a, b in zip(seen, kept, strict=True)) >= 4


def test_how_far_nearby_words_moved_is_said(comfy_host, sd3, without_dog):
    """By what the text encoder gives, which the port reads as it is."""
    model, clip, _ = sd3
    near, unet = comfy_host.module("nodes.stages.nearby"), comfy_host.module("nodes.host.model.unet")
    *_, said = report(without_dog).splitlines()
    assert said.startswith("of 12 words nearby, moved most: ")
    encoder = comfy_host.module("nodes.host.pipeline").text_of(clip, model)
    words, key = near.words_nearby(encoder, concepts(comfy_host, "dog -> sky"), None), EDITED[0]
    assert len(words) == 12 and "dog" not in words
    prompts = [*(f"a photo of the {word}" for word in words), ""]
    read = torch.cat([clip.encode_from_tokens_scheduled(clip.tokenize(prompt))[0][0] for prompt in prompts]).cpu()
    pair = [
        unet.effective_weight(own.get_key_patches("diffusion_model.")[key], key, torch.device("cpu"))
        for own in (model, without_dog[0])
    ]
    shares = moved(read[:-1].float(), read[-1].float(), [pair])
    far = sorted(zip(shares.tolist(), words, strict=True), reverse=True)[:5]
    assert all(word in said for _, word in far) and said.endswith(f" {in_words(far[-1][0])}")


def test_saved_whole_and_loaded_again(comfy_host, sd3, without_dog, tmp_path):
    saved = comfy_host.run(
        "MACE_SaveErasedModel", model=without_dog[0], clip=sd3[1], vae=sd3[2],
        filename_prefix=f"checkpoints/{tmp_path.name}", dtype="as loaded",
    )  # fmt: skip
    loaded = comfy_host.load_checkpoint(Path(saved.ui["text"][0].splitlines()[0]))
    prompts = ["a photo of the dog", "a photo of the ship"]
    before, after = (drawn(comfy_host, models, prompts) for models in ((without_dog[0], *sd3[1:]), loaded))
    assert (before - after).abs().mean() < 0.02


@pytest.mark.long
def test_evaluated_like_the_first_model(comfy_host, sd3, without_dog, judges):
    model, clip, vae = sd3
    chosen = concepts(comfy_host, "dog -> sky")
    shown = dict(model=model, clip=clip, vae=vae, concepts=chosen, prompt="auto", negative="")
    images = comfy_host.run("MACE_ConceptImages", **shown, count=2, width=64, height=64, seed=0, **SAMPLING)
    assert images[0][0].latents.shape == (2, 16, 8, 8) and images[1].shape == (2, 64, 64, 3)
    settings = {**SETTINGS, **SAMPLING, "seeds": 1, "keep": "ship, rose"}
    models = dict(model=model, erased_model=without_dog[0], clip=clip, vae=vae, concepts=chosen)
    found = json.loads(comfy_host.run("MACE_EvaluateErasure", **models, **settings)[1])
    top = found["top-1"]
    assert top["Acc_e"]["base"]["value"] == 1 and top["Acc_e"]["erased"]["value"] == 0
    assert top["Acc_s"]["erased"]["value"] == 1


def test_its_own_words_for_a_thing_are_found(comfy_host, sd3):
    """Find Aliases as on the first model: what draws the same thing, and not its neighbours."""
    model, clip, vae = sd3
    shown = dict(
        model=model, clip=clip, vae=vae, concepts=concepts(comfy_host, "dog -> sky"), prompt="auto", negative=""
    )
    images = comfy_host.run("MACE_ConceptImages", **shown, count=2, width=64, height=64, seed=0, **SAMPLING)[0]
    usual = vars(comfy_host.module("nodes.stages.alias_words").AliasSettings())
    words = "canine, hound, cat, ship, rose"
    found = comfy_host.run("MACE_FindAliases", model=model, clip=clip, images=images, **{**usual, "words": words})
    assert set(found[0][0].aliases) == {"canine", "hound"}
    near = comfy_host.module("nodes.stages.alias_words").nearest_words
    text = comfy_host.module("nodes.host.any_text").AnyText(clip)
    assert {"puppy", "hound"} & set(near(text, ["dog"], 20)[0])
