"""The pooled text's own closed form: against sums written out and least squares, and small SDXLs in the real host."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from devtools import random_models
from mace.formats.prior_file import prior_from_file, prior_to_file
from mace.method.moments import pack, pooled_moments, unpack
from mace.method.prior import COCO_CAPTIONS, make_prior
from mace.method.refine import RefineWeights, pooled_refinement, pooled_weight_delta
from tests import oracle
from tests.families import FAMILIES
from tests.stages import FUSE, IMAGES, TRAIN, report
from tests.test_refine import CONCEPTS, moments
from tests.test_refine_node import concepts, refine

CPU = torch.device("cpu")
C, SIZES = 9, 4
LIST = "dog | pooch -> sky\nship -> ground"
PORT = "diffusion_model.label_emb.0.0.weight"


def rows(count, seed):
    return torch.randn(count, C, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


PAIRS = [(rows(6, 1), rows(6, 2)), (rows(4, 3), rows(4, 4))]
CAPTIONS, KEPT = rows(30, 5), rows(5, 6)
WEIGHTS = RefineWeights(lambda1=0.05, lambda3=3.0, mu=0.7)


def both(pairs=PAIRS):
    """Moments of tokens with those of pooled texts."""
    tokens = [moments(f, g) for f, g in CONCEPTS[: len(pairs)]]
    return [replace(own, pooled=pooled_moments(f, g, CPU)) for own, (f, g) in zip(tokens, pairs, strict=True)]


def gram(texts):
    return texts.T @ texts


def test_moments_are_the_sums_written_out():
    f, g = PAIRS[0]
    found = pooled_moments(f, g, CPU)
    torch.testing.assert_close(found.cross, sum(torch.outer(b, a) for a, b in zip(f, g, strict=True)))
    torch.testing.assert_close(unpack(found.paired), sum(torch.outer(a, a) for a in f))
    assert torch.equal(found.total, found.paired) and found.pairs == found.prompts == 6
    assert both()[0].bytes == found.bytes + moments(*CONCEPTS[0]).bytes
    with pytest.raises(ValueError, match="not finite"):
        pooled_moments(f / 0, g, CPU)


def test_the_map_is_at_the_minimum_and_leaves_the_sizes():
    """Least squares for W' on [pooled, sizes], where the sizes' columns are not to be had; mu by the sums' share."""
    found = both()
    delta = pooled_refinement(found, WEIGHTS, gram(CAPTIONS), gram(KEPT))
    weight = torch.randn(11, C + SIZES, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    tokens = sum(float((f**2).sum()) for f, _ in CONCEPTS[:2])
    share = sum(float((f**2).sum()) for f, _ in PAIRS) / tokens
    f, g = (torch.cat(side) for side in zip(*PAIRS, strict=True))
    problem = oracle.Problem(f, g, CAPTIONS, KEPT, WEIGHTS.lambda1, WEIGHTS.lambda3, WEIGHTS.mu * share)
    wanted = oracle.minimiser(weight[:, :C], problem)
    torch.testing.assert_close(weight[:, :C] + weight[:, :C] @ delta, wanted, rtol=1e-9, atol=1e-9)
    change = pooled_weight_delta(weight, delta)
    torch.testing.assert_close(change[:, :C], (wanted - weight[:, :C]).float(), rtol=1e-4, atol=1e-5)
    assert change.shape == weight.shape and not change[:, C:].any()


def test_strengths_scale_and_leave_out():
    whole, half = (pooled_refinement(both(PAIRS[:1]), WEIGHTS, strengths=[s]) for s in (1.0, 0.5))
    torch.testing.assert_close(half, whole / 2)
    alone = pooled_refinement(both(), WEIGHTS, strengths=[1.0, 0.0])
    torch.testing.assert_close(alone, whole)


def test_a_prior_keeps_pooled_texts_in_its_file():
    fingerprint = torch.zeros(3, 12, 5)
    pooled = (gram(CAPTIONS), gram(KEPT))
    tokens = (torch.eye(5, dtype=torch.float64), None)
    prior = make_prior(tokens[0], 30, tokens[1], ("kept",), fingerprint, "x", (), pooled)
    mean, kept = prior.pooled_moments()
    torch.testing.assert_close(mean, gram(CAPTIONS) / 30 * COCO_CAPTIONS)
    torch.testing.assert_close(kept, gram(KEPT))
    again = prior_from_file(*prior_to_file(prior))
    assert torch.equal(again.pooled_mean, prior.pooled_mean)
    assert torch.equal(again.pooled_preserve, pack(gram(KEPT)))
    plain = make_prior(tokens[0], 30, None, (), fingerprint, "x")
    assert plain.pooled_moments() == (None, None) and set(prior_to_file(plain)[0]) == {"fingerprint", "general.mean"}


@pytest.fixture(scope="module")
def few_templates(comfy_host):
    with pytest.MonkeyPatch.context() as patched:
        few = ("a photo of the {}", "the {} on a table")
        patched.setitem(comfy_host.module("mace.concepts.concept").TEMPLATES, "object", few)
        yield few


@pytest.fixture(scope="module")
def sdxl(comfy_host, few_templates, tmp_path_factory):
    """(MODEL, CLIP, VAE) of a small SDXL with random weights."""
    path = tmp_path_factory.mktemp("sdxl") / "sdxl.safetensors"
    random_models.make_checkpoint(path, "sdxl", small=True)
    yield random_models.load(path, small=True)
    path.unlink()


def weight_of(host, model, key=PORT):
    return host.module("nodes.host.model.unet").effective_weight(
        model.get_key_patches("diffusion_model.")[key], key, CPU
    )


@pytest.mark.host
def test_pooled_texts_of_a_batch_are_the_hosts_own(comfy_host, sdxl):
    prompts = ["a dog", "a ship on the sea, oil painting", "(a:1.2) sky", ""]
    encoder = comfy_host.module("nodes.host.text").TextEncoder(sdxl[1])
    with torch.inference_mode():
        embeddings, pooled = encoder.encode_pooled(prompts)
        wanted = [sdxl[1].encode_from_tokens(sdxl[1].tokenize(text), return_pooled=True) for text in prompts]
        kept = encoder.pooled(prompts)
    torch.testing.assert_close(pooled, torch.cat([own for _, own in wanted]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(embeddings, torch.cat([own for own, _ in wanted]), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(kept, pooled, rtol=1e-4, atol=1e-5)


@pytest.mark.host
def test_the_refined_map_is_least_squares_over_the_hosts_pooled_texts(comfy_host, sdxl, few_templates):
    model, clip, _ = sdxl
    node = refine(comfy_host, model, clip, concepts(comfy_host, LIST), mu="10")
    assert "the pooled text too: 6 prompts" in report(node)
    refined, done = node.result
    tokens = sum(float(unpack(own.paired).trace()) for own in done.moments)

    def texts(phrases):
        found = []
        with torch.inference_mode():
            for phrase in phrases:
                for template in few_templates:
                    tokenized = clip.tokenize(template.replace("{}", phrase))
                    found.append(clip.encode_from_tokens(tokenized, return_pooled=True)[1][0].double())
        return torch.stack(found)

    f, g = texts(["dog", "pooch", "ship"]), texts(["sky", "sky", "ground"])
    mu = 10 * float((f**2).sum()) / tokens
    before, after = weight_of(comfy_host, model).double(), weight_of(comfy_host, refined).double()
    width = f.shape[1]
    problem = oracle.Problem(f, g, oracle.none(width), oracle.none(width), mu=mu)
    part = before[:8, :width]
    torch.testing.assert_close(after[:8, :width], oracle.minimiser(part, problem), rtol=1e-3, atol=1e-4)
    assert torch.equal(after[:, width:], before[:, width:]) and not torch.equal(after[:, :width], before[:, :width])
    assert refined.get_attachment("mace_stages")[-1]["pooled_text"] is True


@pytest.mark.long
@pytest.mark.host
def test_without_what_holds_the_rest_it_is_left_and_said(comfy_host, sdxl, monkeypatch):
    model, clip, _ = sdxl
    chosen = concepts(comfy_host, "dog -> sky")
    settings = dict(captions="built-in", count=20, seed=0, preserve="a cat", preserve_type="object", retention="none")
    prior = comfy_host.run("MACE_Prior", clip=clip, **settings)[0]
    assert prior.pooled_mean is not None and prior.pooled_preserve is not None
    older = replace(prior, pooled_mean=None, pooled_preserve=None)
    stage = comfy_host.module("mace.pipeline.refine")
    for weights, given, held in (
        (RefineWeights(lambda1=1e-4), prior, True),
        (RefineWeights(lambda1=1e-4), older, False),
        (RefineWeights(lambda1=1e-4), None, False),
        (RefineWeights(lambda3=1.0), prior, True),
        (RefineWeights(mu=1.0), older, True),
    ):
        lines = []
        assert stage.holds_pooled(weights, given, PORT, lines) is held
        assert held == ("pooled text is left as it is" not in "".join(lines))
        assert (given is older) == ("make it again" in "".join(lines))
    assert stage.holds_pooled(RefineWeights(mu=1.0), prior, None, []) is False
    assert PORT in refine(comfy_host, model, clip, chosen, mu="10", lambda1="1e-4", prior=prior)[0].patches

    def too_few(*_, **__):
        raise comfy_host.module("mace.method.refine").SingularSystem("singular")

    monkeypatch.setattr(stage, "pooled_refinement", too_few)
    node = refine(comfy_host, model, clip, chosen, mu="10")
    assert "captions are too few" in report(node) and PORT not in node[0].patches and node[1].pooled_delta is None
    monkeypatch.undo()
    off = refine(comfy_host, model, clip, chosen, mu="10", pooled_text=False)
    assert PORT not in off[0].patches and off[0].get_attachment("mace_stages")[-1]["pooled_text"] is False
    on = refine(comfy_host, model, clip, chosen, mu="10", pooled_text=True)
    key = comfy_host.module("nodes.host.kept.content").training_key
    assert key(on[0]) != key(off[0])


@pytest.mark.host
def test_sd1_reads_none(comfy_host, demo):
    node = refine(comfy_host, *demo[:2], concepts(comfy_host, "dog -> sky"), mu="10", pooled_text=True)
    assert "pooled" not in report(node) and node[1].pooled_delta is None and node[1].moments[0].pooled is None


@pytest.mark.long
@pytest.mark.host
def test_fusion_saved_sets_and_exported_loras_have_it(comfy_host, sdxl):
    """With and without the moments in the set's file; strengths scale it; the LoRA loads back as the change."""
    host, (model, clip, vae) = comfy_host, sdxl
    chosen = concepts(host, LIST)
    refined, done = refine(host, model, clip, chosen, mu="10").result
    small = {**IMAGES, "count": 1, "steps": 1, "sampler_name": "euler"}
    shown = host.run("MACE_ConceptImages", model=model, clip=clip, vae=vae, concepts=chosen, **small)[0]
    few = {**TRAIN, "rank": "1", "steps": "1"}
    loras = host.run("MACE_TrainErasureLora", model=refined, clip=clip, images=shown, **few)[0]

    def fused(given, **more):
        return host.run("MACE_FuseLoras", model=model, loras=given, **{**FUSE, **more})[0]

    wanted = weight_of(host, refined)
    torch.testing.assert_close(weight_of(host, fused(loras, refinement=done)), wanted, rtol=1e-4, atol=1e-5)
    # mu goes with the sums of what is left at a strength above 0.
    assert not torch.equal(weight_of(host, fused(loras, strengths="dog = 0.5")), wanted)
    files = host.module("mace.formats.lora_set_file")
    for with_moments in (True, False):
        again = files.set_from_file(*files.set_to_file(loras, with_moments))
        assert again.recipe.pooled
        found = fused(again, **({} if with_moments else {"clip": clip}))
        torch.testing.assert_close(weight_of(host, found), wanted, rtol=1e-4, atol=1e-5)
    layouts = host.module("mace.formats.lora_layouts")
    alone = {PORT: (torch.zeros(1280, 1), torch.zeros(1, 2816))}
    assert "diffusion_model.label_emb.0.0.lora_up.weight" in layouts.to_comfyui(alone)
    assert "base_model.model.add_embedding.linear_1.lora_B.weight" in layouts.to_peft(alone, (1, 1, 1))[0]
    # Exporting the other changes too takes longer.
    pooled_alone = model.clone()
    pooled_alone.patches = {PORT: refined.patches[PORT]}
    node = host.run(
        "MACE_ExportLora",
        base=model,
        edited=pooled_alone,
        rank=8,
        format="kohya (A1111, Forge)",
        filename_prefix="loras/pooled",
    )
    path = report(node).splitlines()[0]
    assert "lora_unet_label_emb_0_0.lora_up.weight" in load_file(path)
    host.folder_paths.add_model_folder_path("loras", str(host.base / "output/loras"))
    (drawn,) = host.nodes.LoraLoaderModelOnly().load_lora_model_only(model, path.rsplit("/", 1)[1], 1.0)
    before = weight_of(host, model)
    assert float((weight_of(host, drawn) - wanted).norm() / (wanted - before).norm()) < 1e-2
    assert json.dumps(refined.get_attachment("mace_stages")[-1])


@pytest.mark.long
@pytest.mark.host
def test_a_diffusion_model_of_its_own_file_is_refined_alike(comfy_host, sdxl, tmp_path):
    """Load Diffusion Model: the same refinement as of the whole checkpoint."""
    import comfy.sd

    whole = random_models.make_checkpoint(tmp_path / "whole.safetensors", "sdxl", small=True)
    prefix = "model.diffusion_model."
    state = {key.removeprefix(prefix): value for key, value in load_file(whole).items() if key.startswith(prefix)}
    save_file(state, tmp_path / "unet.safetensors")
    with torch.inference_mode():
        model = comfy.sd.load_diffusion_model(str(tmp_path / "unet.safetensors"))
    chosen = concepts(comfy_host, "dog -> sky")
    ours, theirs = (refine(comfy_host, m, sdxl[1], chosen, mu="10")[0] for m in (model, sdxl[0]))
    assert set(ours.patches) == set(theirs.patches) and PORT in ours.patches
    for key in ours.patches:
        torch.testing.assert_close(weight_of(comfy_host, ours, key), weight_of(comfy_host, theirs, key))


@pytest.mark.host
def test_a_label_of_pictures_is_no_pooled_text(comfy_host, sdxl):
    """unCLIP reads a picture where SDXL reads the pooled text: nothing of the prompt is asked for there."""
    import comfy.supported_models
    from comfy.model_patcher import ModelPatcher

    shape = {**FAMILIES["sd2"]["config"], "adm_in_channels": 1536, "num_classes": "sequential"}
    network = comfy.supported_models.SD21UnclipL(shape).get_model({}, "")
    assert network.adm_channels and PORT.removeprefix("diffusion_model.") in network.diffusion_model.state_dict()
    reads = comfy_host.module("nodes.host.text").TextEncoder.has_pooled
    assert not reads(ModelPatcher(network, CPU, CPU)) and reads(sdxl[0])
