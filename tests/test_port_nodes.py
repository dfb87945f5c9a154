"""Erasing from a transformer by its text ports, through the nodes: FLUX.1's layout, as small as the host knows it."""

import json

import pytest
import torch
from safetensors import safe_open

from mace.concepts.concept import parse_concepts
from mace.concepts.templates import TEMPLATES
from tests import oracle
from tests.families import build
from tests.stages import delta_of, report
from tests.test_refine_node import concepts, refine
from tests.text_encoders import build_clip, clip, t5

pytestmark = pytest.mark.host

WIDTH, POOLED = 512, 96
SIZES = dict(
    axes_dim=[16, 56, 56], num_heads=1, hidden_size=128, mlp_ratio=4.0, context_in_dim=WIDTH, vec_in_dim=POOLED
)  # fmt: skip
TOKENS, VECTOR = "diffusion_model.txt_in.weight", "diffusion_model.vector_in.in_layer.weight"
SEEN = TEMPLATES["object"][0]


@pytest.fixture(scope="module")
def flux(comfy_host):
    """(MODEL, CLIP); prompts are not padded, so that all rows of a concept's prompts fit into their width."""
    with pytest.MonkeyPatch.context() as patched, torch.inference_mode():
        model = build("flux", patched, **SIZES)
        text = build_clip("flux", t5xxl=t5(WIDTH), clip_l=clip(POOLED))
    text.tokenizer_options["t5xxl_min_length"] = 1
    return model, text


@pytest.fixture(scope="module")
def dog(comfy_host):
    return concepts(comfy_host, "dog -> cat")


def rows_and_vectors(comfy_host, text, concept, phrase):
    """What the ports read of a concept's prompts with a phrase: the conditioning itself, in this family."""
    given = [comfy_host.encode(text, template.replace("{}", phrase))[0] for template in concept.prompts]
    return [tokens[0].double() for tokens, _ in given], [more["pooled_output"][0].double() for _, more in given]


def predicted(comfy_host, model, text, prompt):
    """What a model draws in two steps."""
    import comfy.sample

    given = comfy_host.encode(text, prompt)
    noise = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        return comfy.sample.sample(
            model, noise, 2, 1.0, "euler", "simple", given, given, torch.zeros_like(noise), seed=0
        )


def edited(model, key):
    """A weight with its patches."""
    return model.model.state_dict()[key].double() + delta_of(model, key).double()


def test_its_maps_are_least_squares_over_the_hosts_conditioning(comfy_host, flux, dog):
    model, text = flux
    node = refine(comfy_host, model, text, dog, mu="10")
    assert sorted(node[0].patches) == [TOKENS, VECTOR]
    (ours, vectors), (theirs, others) = (rows_and_vectors(comfy_host, text, dog[0], name) for name in ("dog", "cat"))
    # "dog" and "cat" are one token each, at the same place: all rows pair one to one, the own word's too.
    f, g = torch.cat(ours), torch.cat(theirs)
    mu = 10 * float(f.square().mean())
    nothing = oracle.none(WIDTH)
    weight = model.model.state_dict()[TOKENS].double()
    wanted = oracle.minimiser(weight, oracle.Problem(f, g, nothing, nothing, mu=mu))
    torch.testing.assert_close(edited(node[0], TOKENS), wanted, rtol=1e-5, atol=1e-5)
    f_pooled, g_pooled = torch.stack(vectors), torch.stack(others)
    mu *= float(f_pooled.square().sum() / f.square().sum())
    nothing = oracle.none(POOLED)
    weight = model.model.state_dict()[VECTOR].double()
    wanted = oracle.minimiser(weight, oracle.Problem(f_pooled, g_pooled, nothing, nothing, mu=mu))
    torch.testing.assert_close(edited(node[0], VECTOR), wanted, rtol=1e-5, atol=1e-5)


def test_the_target_is_drawn_as_its_mapping(comfy_host, flux, dog):
    model, text = flux
    draw = lambda own, word: predicted(comfy_host, own, text, SEEN.replace("{}", word))  # noqa: E731
    before, wanted = draw(model, "dog"), draw(model, "cat")
    between = (before - wanted).norm()
    whole = refine(comfy_host, model, text, dog, mu="1e-6")[0]
    missed = (draw(whole, "dog") - wanted).norm()
    assert missed < 0.1 * between
    # The paper leaves the own words alone.
    around = refine(comfy_host, model, text, dog, mu="1e-6", own_words="off")[0]
    assert (draw(around, "dog") - wanted).norm() > 1.5 * missed
    tokens_only = refine(comfy_host, model, text, dog, mu="1e-6", pooled_text=False)[0]
    assert sorted(tokens_only.patches) == [TOKENS]
    assert torch.equal(draw(model, "dog"), before)


def test_a_prior_is_read_where_the_model_reads_it(comfy_host, flux, dog):
    model, text = flux
    settings = dict(captions="built-in", count=0, seed=0, preserve="horse", preserve_type="object", retention="none")
    prior = comfy_host.run("MACE_Prior", clip=text, model=model, **settings)[0]
    assert prior.width == WIDTH and prior.pooled_preserve is not None
    node = refine(comfy_host, model, text, dog, mu="1e-2", lambda3="1000", prior=prior)
    assert "lambda3 1000" in report(node)
    (keeper,) = parse_concepts("horse", "object", mapped=False)
    rows, vectors = rows_and_vectors(comfy_host, text, keeper, "horse")
    weights = model.model.state_dict()
    for key, kept in ((TOKENS, torch.cat(rows)), (VECTOR, torch.stack(vectors))):
        change = edited(node[0], key) - weights[key].double()
        moved = (kept @ change.mT).norm() / (kept @ weights[key].double().mT).norm()
        assert moved < 0.01 < change.norm() / weights[key].norm()


def test_a_very_wide_text_is_refined_in_the_span_of_its_rows(comfy_host, demo, flux, dog, monkeypatch):
    model, text = flux
    lines = "dog -> cat\nhorse -> tree"
    chosen = concepts(comfy_host, lines)
    alone, expected = (refine(comfy_host, model, text, found, mu="10")[0] for found in (dog, chosen))
    ports = comfy_host.module("nodes.host.port_text")
    monkeypatch.setattr(ports, "WIDE", WIDTH - 1)
    monkeypatch.setattr(ports, "_store", type(ports._store)(2**30))
    for found in (dog, chosen):
        rows = refine(comfy_host, model, text, found, mu="10")
        assert isinstance(rows[1].transform_delta, torch.Tensor) == (found is chosen)
        whole = expected if found is chosen else alone
        for key in (TOKENS, VECTOR):
            torch.testing.assert_close(edited(rows[0], key), edited(whole, key), rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="refined without a prior, and mu measures in embeddings"):
        refine(comfy_host, model, text, chosen, mu="10", mu_measures="as the model reads")
    settings = dict(captions="built-in", count=0, seed=0, preserve="zebra", preserve_type="object", retention="none")
    with pytest.raises(ValueError, match="512 wide and a prior would take"):
        comfy_host.run("MACE_Prior", clip=text, model=model, **settings)
    whole = dict(preset="paper (Table 10)", width=64, height=64, seed=0, strengths="", keep_near=True)
    with pytest.raises(ValueError, match="refined without one; turn keep_near off"):
        comfy_host.run("MACE_EraseConcepts", model=model, clip=text, vae=demo[2], words="dog", **whole)


def test_what_does_not_go_together_is_refused(comfy_host, demo, flux, dog):
    model, text = flux
    with pytest.raises(ValueError, match="neither keys nor values: set projections to both"):
        refine(comfy_host, model, text, dog, mu="10", projections="keys")
    with pytest.raises(ValueError, match="does not run with what this CLIP gives: connect the text encoder"):
        refine(comfy_host, model, demo[1], dog, mu="10")
    settings = dict(captions="built-in", count=0, seed=0, preserve="horse", preserve_type="object", retention="none")
    with pytest.raises(ValueError, match="holds: t5xxl. For other models connect the model too"):
        comfy_host.run("MACE_Prior", clip=text, **settings)
    prior = comfy_host.run("MACE_Prior", clip=demo[1], **settings)[0]
    with pytest.raises(ValueError, match="another text encoder.*768 and 512 wide"):
        refine(comfy_host, model, text, dog, mu="10", prior=prior)


def erase(comfy_host, flux, chosen, strengths="", **more):
    model, text = flux
    return comfy_host.run(
        "MACE_EraseConcepts", model=model, clip=text, vae=None, concepts=chosen, preset="paper (Table 10)",
        width=64, height=64, seed=0, strengths=strengths, **more,
    )  # fmt: skip


def test_erase_concepts_is_the_refinement_alone(comfy_host, flux):
    chosen = concepts(comfy_host, "dog -> cat\nhorse -> tree")
    node = erase(comfy_host, flux, chosen)
    expected = refine(comfy_host, *flux, chosen)[0]
    assert all(torch.equal(edited(node[0], key), edited(expected, key)) for key in (TOKENS, VECTOR))
    assert "No LoRA is trained for this model" in report(node)
    # A prompt has as many rows as tokens here, so that no row of a word's stands for one of the empty prompt's.
    assert "words nearby" not in report(node)
    from comfy_execution.graph_utils import ExecutionBlocker

    assert isinstance(node[1], ExecutionBlocker)
    half = erase(comfy_host, flux, chosen, "horse = 0.5")
    assert half.ui["concepts"] == [["dog", 1.0], ["horse", 0.5]]
    changes = [edited(own, TOKENS) - flux[0].model.state_dict()[TOKENS] for own in (node[0], half[0])]
    assert 0.1 < (changes[0] - changes[1]).norm() / changes[0].norm() < 0.9
    assert not erase(comfy_host, flux, chosen, "* = 0")[0].patches


def test_nearby_words_are_told_where_prompts_have_as_many_rows(comfy_host, flux, dog):
    model, text = flux[0], flux[1].clone()
    text.tokenizer_options = {**text.tokenizer_options, "t5xxl_min_length": 64}
    assert ", moved most: " in report(erase(comfy_host, (model, text), dog)).splitlines()[1]
    read = comfy_host.module("nodes.stages.nearby")._read
    port = comfy_host.module("nodes.host.pipeline").text_of(text, model)
    few, many = ["a wolf", ""], ["a wolf", " ".join(["a wolf"] * 40), ""]
    assert len(read(port, few)) == 2 and read(port, many) is None


def test_gentle_to_strong_of_the_refinement_alone(comfy_host, flux, dog):
    sizes = []
    for lean in (-1.0, -0.5, 0.0, 0.5, 1.0):
        node = erase(comfy_host, flux, None, words="dog -> cat", gentle_strong=lean)
        sizes.append(float((edited(node[0], TOKENS) - flux[0].model.state_dict()[TOKENS]).norm()))
        if lean == 0:
            assert torch.equal(edited(node[0], TOKENS), edited(erase(comfy_host, flux, dog)[0], TOKENS))
    assert sizes == sorted(sizes) and sizes[0] < 0.9 * sizes[-1]
    assert "gentle - strong 1: what holds the rest weighs 0.01 times as much" in report(node)


@pytest.mark.parametrize("layout", ["ComfyUI", "kohya (A1111, Forge)"])
def test_the_change_is_a_lora_for_load_lora(comfy_host, flux, dog, tmp_path, layout):
    import comfy.sd
    import comfy.utils

    model, text = flux
    node = refine(comfy_host, model, text, dog, mu="10")
    settings = dict(rank=WIDTH, format=layout, filename_prefix=f"loras/{tmp_path.name}")
    said = report(comfy_host.run("MACE_ExportLora", base=model, edited=node[0], **settings))
    assert "2 of 2 matrices differ" in said
    tensors = comfy.utils.load_torch_file(said.splitlines()[0])
    loaded, _ = comfy.sd.load_lora_for_models(model, None, tensors, 1.0, 0.0)
    prompt = SEEN.replace("{}", "dog")
    drawn, expected = (predicted(comfy_host, own, text, prompt) for own in (loaded, node[0]))
    torch.testing.assert_close(drawn, expected, rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="written for SD1.x, SD2.x and SDXL alone"):
        comfy_host.run("MACE_ExportLora", base=model, edited=node[0], **settings | {"format": "PEFT"})


def test_saved_loaded_and_drawn_with(comfy_host, flux, dog, tmp_path):
    model, text = flux
    node = erase(comfy_host, flux, dog, "dog = 0.8")
    saved = comfy_host.run(
        "MACE_SaveErasedModel", model=node[0], filename_prefix=f"diffusion_models/{tmp_path.name}", dtype="as loaded"
    )
    path = saved.ui["text"][0].splitlines()[0]
    with safe_open(path, "pt") as file:
        record = json.loads(file.metadata()["mace.provenance"])
    (stage,) = record["stages"]
    assert stage["own_words"] and stage["pooled_text"] and stage["concepts"][0]["strength"] == 0.8
    import comfy.sd

    loaded = comfy.sd.load_diffusion_model(path, model_options={"dtype": torch.float32})
    assert type(loaded.model.model_config).__name__ == "Flux"
    drawn, expected = (predicted(comfy_host, own, text, SEEN.replace("{}", "dog")) for own in (loaded, node[0]))
    torch.testing.assert_close(drawn, expected, rtol=1e-4, atol=1e-4)
    assert (predicted(comfy_host, model, text, SEEN.replace("{}", "dog")) - drawn).norm() > 1e-2 * drawn.norm()


def test_what_is_for_unets_says_so(comfy_host, flux, dog):
    """Masks by attention and training, before a text encoder is asked that is not CLIP-L."""
    model, text = flux
    shown = comfy_host.module("mace.concepts.images").ConceptImages(
        dog[0], torch.zeros(2, 16, 8, 8), torch.zeros(2, 64, 64, 3, dtype=torch.uint8), SEEN
    )
    masks = comfy_host.module("nodes.stages.mask_making")
    with pytest.raises(ValueError, match="Flux is no Stable Diffusion UNet.*choose another back-end than attention"):
        masks.make_masks(model, text, [shown], masks.ATTENTION)
    assert masks.make_masks(model, text, [shown], masks.WHOLE)[0][0].shape == (2, 64, 64)
    training = comfy_host.module("nodes.stages.trainer")
    with pytest.raises(ValueError, match="CFR Refine and Erase Concepts take it"):
        training.Trainer(model, text, training.TrainOptions(), None, print)
