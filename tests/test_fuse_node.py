"""Fuse LoRAs in the real host, on the trained demo model."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import to_tensor

from tests.stages import delta_of, fuse, report, stages
from tests.test_refine_node import concepts, refine

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("few_templates")]
SHORT = {"steps": 2, "cfg": 3.0, "sampler_name": "ddim", "scheduler": "normal"}


@pytest.fixture(scope="module")
def listed(comfy_host):
    return concepts(comfy_host, "dog -> sky\nship -> ground")


@pytest.fixture(scope="module")
def parts(comfy_host, demo, listed):
    """(refined MODEL, refinement, images, LoraSet), all trained on this list's refinement."""
    comfy_host.module("nodes.stages.trained")._store.clear()
    return stages(comfy_host, demo, listed)


@pytest.fixture
def numerics(comfy_host):
    """The pack's own modules: fuse and refine."""
    return comfy_host.module("mace.method.fuse"), comfy_host.module("mace.method.refine")


def effective(host, model, key):
    unet = host.module("nodes.host.model.unet")
    return unet.effective_weight(model.get_key_patches("diffusion_model.")[key], key, torch.device("cpu"))


def closed_form(host, model, moments, loras, key, mu, transform, strengths=(1.0, 1.0)):
    """Eq. 7's minimiser of one projection by least squares over all tokens' second moments, float64."""
    moment = host.module("mace.method.moments")
    weight = effective(host, model, key).double()
    refined = weight + weight @ transform
    width = weight.shape[1]
    system = mu * torch.eye(width, dtype=torch.float64)
    target = refined * mu
    for entry, lora, strength in zip(moments, loras, strengths, strict=True):
        total = moment.unpack(entry.total)
        system += total
        up, down = (part.double() for part in lora[key])
        target += (refined + strength * up @ down) @ total
    return torch.linalg.lstsq(system, target.T).solution.T - weight


def test_what_goes_between_nodes_is_told_in_short(parts):
    """The host prints a failing node's inputs into its report of the error, tensors and all."""
    _, refinement, shown, loras = parts
    for value in (refinement, shown, loras):
        assert "dog" in repr(value) and "tensor(" not in repr(value)


def test_patches_are_eq_7_per_layer(comfy_host, demo, parts):
    model = demo[0]
    _, refinement, _, loras = parts
    node = fuse(comfy_host, model, loras, mu="3")
    fused = node[0]
    keys = comfy_host.module("nodes.host.model.unet").cross_attention_keys(model)
    assert set(fused.patches) == set(keys) and not model.patches
    both = [entry.lora for entry in loras.loras]
    for key in list(fused.patches)[::3]:
        expected = closed_form(comfy_host, model, refinement.moments, both, key, 3.0, refinement.transform_delta)
        found = delta_of(fused, key).double()
        # The patch is kept in the model's own dtype, fp32 here.
        assert float((found - expected).norm() / expected.norm()) < 1e-4
    assert "mu 3" in report(node) and "lambda2 0 (auto)" in report(node)


def test_strengths(comfy_host, demo, parts, numerics):
    """Half of one concept: T(s) and the scaled LoRA; and none at all: the model to the bit."""
    fusing, refining = numerics
    model, clip, _ = demo
    _, refinement, _, loras = parts
    node = fuse(comfy_host, model, loras, strengths="dog = 0.5")
    fused = node[0]
    assert node.ui["concepts"] == [["dog", 0.5], ["ship", 1.0]]
    transform = refining.refinement(refinement.moments, refinement.weights, strengths=[0.5, 1.0])
    both = [entry.lora for entry in loras.loras]
    key = next(iter(fused.patches))
    expected = closed_form(comfy_host, model, refinement.moments, both, key, 10.0, transform, (0.5, 1.0))
    assert float((delta_of(fused, key).double() - expected).norm() / expected.norm()) < 1e-4
    none = fuse(comfy_host, model, loras, strengths="* = 0\ncat = 1")
    assert not none[0].patches and "the model is as it was" in report(none)
    assert "strengths names what is not in the list, and is passed over: cat" in report(none)
    assert none.ui["concepts"] == [["dog", 0.0], ["ship", 0.0]]
    pictures = [comfy_host.sample(m, clip, "a photo of the dog", steps=2) for m in (model, none[0])]
    assert torch.equal(*pictures)


def test_naive_is_eq_6(comfy_host, demo, parts):
    model = demo[0]
    _, refinement, _, loras = parts
    node = fuse(comfy_host, model, loras, method="naive sum (Eq. 6)")
    key = next(iter(node[0].patches))
    weight = effective(comfy_host, model, key).double()
    expected = weight @ refinement.transform_delta
    for entry in loras.loras:
        up, down = (part.double() for part in entry.lora[key])
        expected += up @ down / 2
    assert float((delta_of(node[0], key).double() - expected).norm() / expected.norm()) < 1e-4
    assert "play no part" in report(node)


def test_keys_alone(comfy_host, demo, listed):
    """A refinement of the keys alone: the values get the LoRAs' part on the original weights, and no refinement."""
    model = demo[0]
    refined, refinement, shown, loras = stages(comfy_host, demo, listed, projections="keys")
    keys_only = refine(comfy_host, model, demo[1], listed, mu="10", projections="keys")[1]
    fused = fuse(comfy_host, model, loras, refinement=keys_only)[0]
    assert fused.patches and all(".to_k." in key for key in fused.patches)


def test_a_new_strength_trains_and_reads_nothing(comfy_host, demo, parts, monkeypatch):
    model = demo[0]
    for module, name in (("model.forward", "trainable_copy"), ("text", "TextEncoder.encode_pooled")):
        path = name.split(".")
        owner = comfy_host.module(f"nodes.host.{module}")
        for part in path[:-1]:
            owner = getattr(owner, part)
        monkeypatch.setattr(owner, path[-1], lambda *a, **k: pytest.fail("not a new solve only"))
    for strengths in ("dog = 0.2", "dog = 0", ""):
        fuse(comfy_host, model, parts[3], strengths=strengths)


def test_a_prompt_before_and_after_draws_only_what_a_strength_changed(comfy_host, demo, parts, monkeypatch):
    """Before: drawn once, whatever the strengths. After: with all at 0 the same picture, without drawing."""
    model, clip, vae = demo
    preview = comfy_host.module("nodes.host.gallery")
    drawn, sampled = [], preview.sampled
    monkeypatch.setattr(preview, "sampled", lambda own, *a, **k: drawn.append(own) or sampled(own, *a, **k))
    monkeypatch.setattr(comfy_host.module("nodes.stages.erasing"), "SAMPLING", SHORT)
    given = dict(clip=clip, vae=vae, preview_prompt="  a photo of\nthe dog ", preview_seed=5, width=64, height=64)

    def run(strengths):
        node = fuse(comfy_host, model, parts[3], strengths=strengths, **given)
        opened = {
            name: [
                to_tensor(Image.open(comfy_host.base / "temp" / entry["subfolder"] / entry["filename"]).convert("RGB"))
                for entry in node.ui[name]
            ]
            for name in ("a_images", "b_images")
        }
        return node[0], opened["a_images"], opened["b_images"]

    fused, before, after = run("")
    assert [own is model for own in drawn] == [True, False] and len(before) == len(after) == 2
    for place, seed in enumerate((5, 6)):
        for own, found in ((model, before), (fused, after)):
            latents = comfy_host.sample(own, clip, "a photo of the dog", seed=seed, steps=2, cfg=3.0, sampler="ddim")
            assert float((comfy_host.decode(vae, latents)[0] - found[place]).abs().max()) < 0.02
    assert float((before[0] - after[0]).abs().max()) > 0.02
    drawn.clear()
    half, again, less = run("dog = 0.5")
    assert len(drawn) == 1 and drawn[0] is half and all(map(torch.equal, again, before))
    assert not torch.equal(less[0], after[0])
    drawn.clear()
    _, again, none = run("* = 0")
    assert not drawn and all(map(torch.equal, none, before))
    with pytest.raises(ValueError, match="preview_prompt is drawn with clip and vae: connect both"):
        fuse(comfy_host, model, parts[3], **{**given, "vae": None})


def test_dropping_and_adding_concepts(comfy_host, demo, parts):
    """The refinement's list decides: a LoRA it does not hold is left out, a concept without a LoRA is refined only."""
    model, clip, _ = demo
    ship = concepts(comfy_host, "ship -> ground\ncat")
    refinement = refine(comfy_host, model, clip, ship, mu="10")[1]
    node = fuse(comfy_host, model, parts[3], refinement=refinement)
    assert "refined only, for they have no LoRA: cat" in report(node)
    assert "left out, for the refinement does not hold them: dog" in report(node)
    assert "trained on the refinement of another list: ship" in report(node)
    other = refine(comfy_host, model, clip, concepts(comfy_host, "horse"), mu="10")[1]
    with pytest.raises(ValueError, match="no LoRA is of a concept that the refinement holds"):
        fuse(comfy_host, model, parts[3], refinement=other)
    mapped = refine(comfy_host, model, clip, concepts(comfy_host, "dog -> forest"), mu="10")[1]
    assert "trained with another mapping, other aliases or prompts: dog" in report(
        fuse(comfy_host, model, parts[3], refinement=mapped)
    )


def test_loaded_loras(comfy_host, demo, parts):
    """Without moments: read through the CLIP input, the same patches; without a CLIP or with another: refused."""
    model, clip, _ = demo
    loras = parts[3]
    bare = replace(loras, loras=tuple(replace(entry, moments=None) for entry in loras.loras))
    with pytest.raises(ValueError, match="the moments of dog, ship are not at hand: connect the CLIP"):
        fuse(comfy_host, model, bare)
    node = fuse(comfy_host, model, bare, clip=clip)
    assert "the moments of 2 concepts were read" in report(node)
    direct = fuse(comfy_host, model, loras)[0]
    for key in direct.patches:
        torch.testing.assert_close(delta_of(node[0], key), delta_of(direct, key))
    skipped = clip.clone()
    skipped.clip_layer(-12)
    with pytest.raises(ValueError, match="another text encoder or another clip skip"):
        fuse(comfy_host, model, bare, clip=skipped)
    with pytest.raises(ValueError, match="bring no refinement along: connect CFR Refine's refinement"):
        fuse(comfy_host, model, replace(loras, recipe=None))


def test_the_prior(comfy_host, demo, listed, parts):
    """The refinement's own is used, a missing one is asked for, one that preserves the erased is refused."""
    model, clip, _ = demo

    def prior(**settings):
        chosen = dict(captions="built-in", count=20, seed=0, preserve="", preserve_type="object", retention="none")
        return comfy_host.run("MACE_Prior", clip=clip, **{**chosen, **settings})[0]

    refinement = refine(comfy_host, model, clip, listed, mu="10", lambda1="1e-3", prior=prior())[1]
    with_own = fuse(comfy_host, model, parts[3], refinement=refinement)
    assert "prior: the refinement's" in report(with_own) and "lambda2 0.001 (auto)" in report(with_own)
    recipe = comfy_host.module("mace.formats.lora_set").recipe_of(refinement, "x")
    loaded = replace(parts[3], recipe=replace(recipe, prior=None))
    with pytest.raises(ValueError, match=r"with a prior \(built-in, seed 0\): connect it"):
        fuse(comfy_host, model, loaded)
    given = fuse(comfy_host, model, loaded, prior=prior())[0]
    key = next(iter(given.patches))
    torch.testing.assert_close(delta_of(given, key), delta_of(with_own[0], key), rtol=1e-3, atol=1e-6)
    with pytest.raises(ValueError, match="'ship' is to be erased, and the prior preserves it"):
        fuse(comfy_host, model, parts[3], prior=prior(preserve="ship"))
    names = comfy_host.base / "input" / "names.txt"
    names.write_text("a photo of a ship\na house\na tree", encoding="utf-8")
    whole = prior(captions=names.name, preserve="ship\nboat")
    about = report(fuse(comfy_host, model, parts[3], prior=whole, clip=clip, lambda2="1e-3"))
    assert "1 of 3 captions" in about and "no longer preserved, for it is erased now: ship" in about
    less = replace(whole, preserved=whole.preserved[1:], texts=replace(whole.texts, prompts=whole.texts.prompts[1:]))
    assert "connect the CLIP" in report(fuse(comfy_host, model, parts[3], prior=less, lambda2="1e-3"))
    older = replace(whole, preserved=(), preserve=None, texts=None)
    for given in ({}, {"clip": clip}):
        about = report(fuse(comfy_host, model, parts[3], prior=older, lambda2="1e-3", **given))
        assert "without leaving out captions that name dog, ship, and" in about
    assert "leaving out" not in report(fuse(comfy_host, model, parts[3], prior=older, lambda2="0"))
    assert "lambda2 has no effect" in report(fuse(comfy_host, model, parts[3], lambda2="1"))
    assert "lambda3 has no effect" in report(fuse(comfy_host, model, parts[3], lambda3="1"))


def test_what_has_no_strength_stays_in_the_prior(comfy_host, demo, listed, parts):
    """A concept left as it is holds on to its captions and its preserved name, in the fusion and the refinement."""
    model, clip, _ = demo
    names = comfy_host.base / "input" / "both.txt"
    names.write_text("a photo of a ship\na photo of a dog\na house\na tree", encoding="utf-8")
    chosen = dict(captions=names.name, count=9, seed=0, preserve="ship\ndog", preserve_type="object", retention="none")
    whole = comfy_host.run("MACE_Prior", clip=clip, **chosen)[0]
    given = dict(prior=whole, clip=clip, lambda2="1e-3", lambda3="1e-3")
    ship = refine(comfy_host, model, clip, concepts(comfy_host, "ship -> ground"), mu="10")[1]
    two = fuse(comfy_host, model, parts[3], strengths="dog = 0", **given)
    alone = fuse(comfy_host, model, parts[3], refinement=ship, **given)
    assert "1 of 4 captions" in report(two) and "erased now: ship\n" in report(two)
    key = next(iter(two[0].patches))
    torch.testing.assert_close(delta_of(two[0], key), delta_of(alone[0], key))
    stage, text = (comfy_host.module(name) for name in ("mace.pipeline.refine", "nodes.host.pipeline"))
    encoder, weights = text.text_and_weights(model, clip)
    how = comfy_host.module("mace.method.refine").RefineWeights(lambda1=1e-3, mu=10.0)
    progress = comfy_host.module("nodes.host.progress").NodeProgress()
    about = stage.refine_model(weights, encoder, progress, listed, how, whole, strengths=(0.0, 1.0))[2]
    assert "taken out of the prior: 1 of 4 captions, which name what is erased" in about
    assert "  taken out: a photo of a ship" in about
    assert "lambda3" in report(fuse(comfy_host, model, parts[3], prior=whole, clip=clip)).splitlines()[0]
    # So it is where the refinement of both brings the prior along.
    both = refine(comfy_host, model, clip, listed, mu="10", lambda1="1e-3", lambda3="1e-3", prior=whole)[1]
    beside = dict(refinement=both, strengths="dog = 0")
    own = fuse(comfy_host, model, parts[3], **{**given, "prior": None}, **beside)
    theirs = fuse(comfy_host, model, parts[3], **given, **beside)
    assert "1 of 4 captions" in report(own)
    torch.testing.assert_close(delta_of(own[0], key), delta_of(theirs[0], key), rtol=0, atol=0)
    blind = fuse(comfy_host, model, parts[3], **{**given, "prior": None, "clip": None}, **beside)
    assert "the 2 captions that were taken out of the prior stay out" in report(blind)


def test_wrong_models(comfy_host, demo, parts):
    with pytest.raises(ValueError, match="connect the MODEL from before CFR Refine"):
        fuse(comfy_host, parts[0], parts[3])
    entry = parts[3].loras[0]
    pair = next(iter(entry.lora.values()))
    strange = {"diffusion_model.input_blocks.9.1.transformer_blocks.0.attn2.to_k.weight": pair}
    with pytest.raises(ValueError, match="of another model: this one has no diffusion_model.input_blocks.9"):
        fuse(comfy_host, demo[0], replace(parts[3], loras=(replace(entry, lora=strange),)))


def test_bad_settings(comfy_host, demo, parts):
    def check(**inputs):
        return comfy_host.validate("MACE_FuseLoras", **inputs)

    assert check(strengths="dog = 0.5", lambda2="auto", lambda3="8", mu="1e-3") is True
    assert "line 1: 'dog' is not" in check(strengths="dog")
    assert "lambda2: 'x'" in check(lambda2="x")


def test_the_record_of_it(comfy_host, demo, parts):
    fused = fuse(comfy_host, demo[0], parts[3], strengths="dog = 0.5")[0]
    (stage,) = fused.get_attachment("mace_stages")
    assert json.loads(json.dumps(stage)) == stage
    assert [(c["target"], c["strength"], c["training"]["steps"]) for c in stage["concepts"]] == [
        ("dog", 0.5, 3),
        ("ship", 1.0, 3),
    ]
    assert stage["method"] == "closed form (Eq. 7)" and stage["weights"]["mu"] == 10.0
    # A fused model is an original again: a second erasure may start from it.
    assert fused.get_attachment("mace_refinement") is None


def test_strength_of_the_refinement_counts_too(comfy_host, demo, listed, parts):
    model, clip, _ = demo
    half = refine(comfy_host, model, clip, listed, mu="10", strength=0.5)[1]
    node = fuse(comfy_host, model, parts[3], refinement=half)
    twice = fuse(comfy_host, model, parts[3], strengths="* = 0.5")
    key = next(iter(node[0].patches))
    torch.testing.assert_close(delta_of(node[0], key), delta_of(twice[0], key))
    assert "all times CFR Refine's strength, 0.5" in report(node)
