"""A small SDXL that can draw: both texts erased, a LoRA trained, saved as a whole checkpoint, loaded, evaluated."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.demo_model.checkpoint import write
from benchmarks.demo_model.denoisers import skip_idle
from benchmarks.pictures import Studio
from devtools.cache import REPO
from devtools.identity_layers import skip_identity_layers
from tests.evaluation import SETTINGS
from tests.judge import Judge
from tests.stages import report
from tests.test_refine_node import concepts, refine

pytestmark = pytest.mark.host

COMPACT = REPO / "assets/demo/demo_sdxl.safetensors"
SAMPLING = dict(steps=8, cfg=4.0, sampler_name="ddim", scheduler="normal")
# Table 10's for one object.
WEIGHTS = dict(mu="10", lambda3="0")
PORT = "diffusion_model.label_emb.0.0.weight"


@pytest.fixture(scope="module")
def judge():
    return Judge(REPO / "assets/demo/judge.safetensors")


@pytest.fixture(scope="module")
def sdxl(comfy_host, tmp_path_factory):
    """(MODEL, CLIP, VAE) of the whole checkpoint. It has 1.8 GB, and goes when the tests are over."""
    path = tmp_path_factory.mktemp("sdxl") / "sdxl.safetensors"
    write(COMPACT, path)
    loaded = comfy_host.load_checkpoint(path)
    skip_idle(loaded[0].model.diffusion_model)
    yield loaded
    path.unlink()


def studio(comfy_host, models):
    model, clip, vae = models
    return Studio(comfy_host, clip, vae, SAMPLING["steps"], SAMPLING["sampler_name"], pooled=True)


def drawn(comfy_host, models, prompts, **how):
    """Pictures [B, 3, 64, 64], a prompt each, with the host's sampler."""
    return studio(comfy_host, models).draw(models[0], prompts, [0] * len(prompts), **how)


def names(judge, pictures):
    return [judge.names[int(place)] for place in judge(pictures).argmax(-1)]


def test_it_draws_what_it_was_trained_on(comfy_host, sdxl, judge):
    import comfy.model_base
    import comfy.supported_models

    assert isinstance(sdxl[0].model, comfy.model_base.SDXL)
    assert isinstance(sdxl[0].model.model_config, comfy.supported_models.KOALA_700M)
    wanted = ["dog", "ship", "rose", "panda"]
    seen = names(judge, drawn(comfy_host, sdxl, [f"a photo of the {name}" for name in wanted]))
    assert sum(a == b for a, b in zip(seen, wanted, strict=True)) >= 3


@pytest.fixture(scope="module")
def without_dog(comfy_host, sdxl):
    return refine(comfy_host, *sdxl[:2], concepts(comfy_host, "dog -> sky"), **WEIGHTS, own_words="on")


def test_both_texts_are_edited_and_the_concept_goes(comfy_host, sdxl, judge, without_dog):
    assert "the pooled text too" in report(without_dog) and PORT in without_dog[0].patches
    erased = (without_dog[0], *sdxl[1:])
    asked = ["a photo of the dog", "an illustration of the dog", "the dog in the forest", "dog"]
    assert names(judge, drawn(comfy_host, erased, asked)).count("dog") == 0
    kept = ["ship", "rose", "panda", "taxi", "guitar"]
    seen = names(judge, drawn(comfy_host, erased, [f"a photo of the {name}" for name in kept]))
    assert sum(a == b for a, b in zip(seen, kept, strict=True)) >= 4


@pytest.mark.long
def test_the_pooled_text_alone_draws_the_concept_no_more(comfy_host, sdxl, judge, without_dog):
    """With nothing in the context: what the model draws by its pooled text, before and after."""

    def shown(model):
        return names(judge, drawn(comfy_host, (model, *sdxl[1:]), asked, encode=lambda prompt: empty))

    empty = studio(comfy_host, sdxl).encoded("")
    asked = ["a photo of the dog", "an illustration of the dog", "a photo of the ship", "an illustration of the ship"]
    before, after = shown(sdxl[0]), shown(without_dog[0])
    assert before[:2].count("dog") == 2 and after[:2].count("dog") == 0
    assert before[2:].count("ship") == after[2:].count("ship") == 2


@pytest.mark.long
def test_saved_whole_and_loaded_again(comfy_host, sdxl, without_dog, tmp_path):
    saved = comfy_host.run(
        "MACE_SaveErasedModel", model=without_dog[0], clip=sdxl[1], vae=sdxl[2],
        filename_prefix=f"checkpoints/{tmp_path.name}", dtype="as loaded",
    )  # fmt: skip
    path = Path(saved.ui["text"][0].splitlines()[0])
    loaded = comfy_host.load_checkpoint(path)
    path.unlink()
    skip_idle(loaded[0].model.diffusion_model)
    prompts = ["a photo of the dog", "a photo of the ship"]
    before, after = (drawn(comfy_host, models, prompts) for models in ((without_dog[0], *sdxl[1:]), loaded))
    assert (before - after).abs().mean() < 0.02


@pytest.mark.long
def test_loaders_of_single_files_give_the_same_refinement(comfy_host, sdxl, without_dog, tmp_path):
    """Load Diffusion Model and DualCLIPLoader in the place of Load Checkpoint."""
    import comfy.model_management
    import comfy.sd

    model, clip, _ = sdxl
    # The weights may be those of a patched clone that was drawn with.
    comfy.model_management.unload_all_models()
    encoders = clip.cond_stage_model
    parts = {"unet": model.model.diffusion_model, "l": encoders.clip_l.transformer, "g": encoders.clip_g.transformer}
    for name, part in parts.items():
        save_file({key: own.contiguous() for key, own in part.state_dict().items()}, tmp_path / f"{name}.safetensors")
    with torch.inference_mode():
        alone = comfy.sd.load_diffusion_model(str(tmp_path / "unet.safetensors"))
        both = comfy.sd.load_clip([str(tmp_path / f"{name}.safetensors") for name in "lg"])
    skip_identity_layers(both)
    for name in parts:
        (tmp_path / f"{name}.safetensors").unlink()
    found = refine(comfy_host, alone, both, concepts(comfy_host, "dog -> sky"), **WEIGHTS, own_words="on")[0]
    assert found.patches.keys() == without_dog[0].patches.keys()
    for key, entry in without_dog[0].patches.items():
        own, theirs = (part[-1][1][1][0].float() for part in (entry, found.patches[key]))
        assert float((own - theirs).norm()) <= 1e-3 * float(own.norm()), key


@pytest.fixture
def every_block(sdxl):
    """The model with its idle blocks computed: maps and training look at the attention of all."""
    unet = sdxl[0].model.diffusion_model
    for module in unet.modules():
        vars(module).pop("forward", None)
    yield
    skip_idle(unet)


@pytest.mark.long
def test_a_lora_is_trained_and_fused_and_the_model_evaluated(comfy_host, sdxl, every_block, judges):
    """All stages of the first model: pictures, masks, refinement, training, fusion with the pooled text, evaluation."""
    model, clip, vae = sdxl
    chosen = concepts(comfy_host, "dog -> sky")
    shown = dict(model=model, clip=clip, vae=vae, concepts=chosen, prompt="auto", negative="")
    made = comfy_host.run("MACE_ConceptImages", **shown, count=2, width=64, height=64, seed=0, **SAMPLING)
    images = made[0]
    assert images[0].latents.shape == (2, 4, 8, 8) and made[1].shape == (2, 64, 64, 3)
    usual = vars(comfy_host.module("nodes.stages.alias_words").AliasSettings())
    words = "canine, hound, cat, ship"
    found = comfy_host.run("MACE_FindAliases", model=model, clip=clip, images=images, **{**usual, "words": words})
    assert set(found[0][0].aliases) <= {"canine", "hound"} and found[0][0].aliases
    erased = comfy_host.run(
        "MACE_EraseConcepts", model=model, clip=clip, vae=vae, concepts=chosen, preset="paper (Table 10)",
        width=64, height=64, seed=0, strengths="",
    )  # fmt: skip
    assert PORT in erased[0].patches and len(erased[1].loras) == 1
    text = erased.ui["text"][0]
    assert "the pooled text too" in text
    settings = {**SETTINGS, **SAMPLING, "seeds": 1, "keep": "ship, rose"}
    models = dict(model=model, erased_model=erased[0], clip=clip, vae=vae, concepts=chosen)
    top = json.loads(comfy_host.run("MACE_EvaluateErasure", **models, **settings)[1])["top-1"]
    assert top["Acc_e"]["base"]["value"] == 1 and top["Acc_s"]["erased"]["value"] == 1
    assert torch.isfinite(erased[1].loras[0].losses).all()
