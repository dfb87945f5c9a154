"""CFR Refine in the real host, on the trained demo model."""

import hashlib
from pathlib import Path

import pytest
import torch

from tests import oracle
from tests.judge import Judge

pytestmark = pytest.mark.host

SETTINGS = dict(lambda1="auto", lambda3="auto", mu="auto", projections="both", lambda1_form="paper")


def concepts(host, text, type="object", preset="none", **more):
    return host.run("MACE_Concepts", concepts=text, type=type, preset=preset, prompt_file="none", **more)[0]


def refine(host, model, clip, chosen, strength=1.0, **settings):
    return host.run(
        "MACE_CFRRefine", model=model, clip=clip, concepts=chosen, strength=strength, **{**SETTINGS, **settings}
    )


@pytest.fixture(scope="module")
def airplane(comfy_host):
    return concepts(comfy_host, "airplane -> ground")


@pytest.fixture(scope="module")
def refined(comfy_host, demo, airplane):
    model, clip, _ = demo
    return refine(comfy_host, model, clip, airplane, mu="10")


def weights_hash(model):
    """Over the weights without patches, whichever patched clone of the model the host has loaded now."""
    digest = hashlib.sha256()
    for name, (first, *_) in sorted(model.get_key_patches().items()):
        digest.update(name.encode() + first[0].float().cpu().numpy().tobytes())
    return digest.hexdigest()


def test_patches_only(comfy_host, demo, airplane):
    model, clip, _ = demo
    before = weights_hash(model)
    node = refine(comfy_host, model, clip, airplane, mu="10")
    assert weights_hash(model) == before and not model.patches
    names = sorted(node[0].patches)
    assert len(names) == 8
    assert all(name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")) for name in names)


def test_equals_the_papers_sums_per_layer(comfy_host, demo, airplane, refined):
    """Each refined matrix against Eq. 2 with keys materialised from the host's own embeddings of single prompts."""
    model, clip, _ = demo
    (concept,) = airplane
    f, g = [], []
    start, end, pad = 49406, 49407, 49407
    for template in concept.prompts:
        sides = []
        for phrase in (concept.target, concept.mapping):
            prompt = template.replace("{}", phrase)
            row = [token for token, _ in clip.tokenize(prompt)["l"][0]]
            assert row[0] == start and row[-1] == pad
            sides.append((row, comfy_host.encode(clip, prompt)[0][0][0].double()))
        words = clip.tokenizer.clip_l.tokenizer(concept.target)["input_ids"][1:-1]
        (row_f, e_f), (row_g, e_g) = sides
        at = next(i for i in range(77) if row_f[i : i + len(words)] == words)
        shift = row_g.index(end) - row_f.index(end)
        for i in range(77):
            j = i if i < at else i + shift
            if not at <= i < at + len(words) and j < 77:
                f.append(e_f[i])
                g.append(e_g[j])
    nothing = oracle.none(768)
    problem = oracle.Problem(torch.stack(f), torch.stack(g), nothing, nothing, mu=10.0)
    keys = [name for name in refined[0].patches if "to_" in name]
    for name in (keys[0], keys[-1]):
        weight = effective(model, name).double()
        expected = oracle.minimiser(weight, problem)
        (_, (kind, (delta,)), _, _, _) = refined[0].patches[name][0]
        assert kind == "diff"
        change = expected - weight
        torch.testing.assert_close(delta.double(), change, rtol=0, atol=2e-3 * float(change.abs().max()))


def test_strength_zero_is_the_input_model_to_the_bit(comfy_host, demo, airplane, refined):
    model, clip, _ = demo
    off = refine(comfy_host, model, clip, airplane, strength=0.0, mu="10")
    assert not off[0].patches
    prompt = "a photo of the airplane"
    base = comfy_host.sample(model, clip, prompt, steps=4)
    assert torch.equal(comfy_host.sample(off[0], clip, prompt, steps=4), base)
    assert not torch.equal(comfy_host.sample(refined[0], clip, prompt, steps=4), base)
    assert torch.equal(comfy_host.sample(model, clip, prompt, steps=4), base)


def test_strength_scales_the_change(comfy_host, demo, airplane, refined):
    model, clip, _ = demo
    half = refine(comfy_host, model, clip, airplane, strength=0.5, mu="10")
    key = next(iter(half[0].patches))
    base = effective(model, key)
    whole = effective(refined[0], key) - base
    torch.testing.assert_close(effective(half[0], key) - base, whole / 2, rtol=1e-4, atol=1e-6)


def effective(model, key):
    """A weight with the model's patches in it, whatever the host has loaded now."""
    import comfy.lora

    patches = model.get_key_patches("diffusion_model.")[key]
    weight = patches[0][0].float().clone()
    return comfy.lora.calculate_weight(patches[1:], weight, key)


def test_keys_or_values_only(comfy_host, demo, airplane):
    model, clip, _ = demo
    for choice, ending in (("keys", "to_k.weight"), ("values", "to_v.weight")):
        node = refine(comfy_host, model, clip, airplane, mu="10", projections=choice)
        assert len(node[0].patches) == 4 and all(name.endswith(ending) for name in node[0].patches)


def test_upstream_patches_are_part_of_the_model(comfy_host, demo, airplane, refined):
    model, clip, _ = demo
    key = next(iter(refined[0].patches))
    upstream = model.clone()
    shape = model.model.state_dict()[key].shape
    upstream.add_patches({key: ("diff", (0.05 * torch.randn(shape, generator=torch.Generator().manual_seed(1)),))}, 0.5)
    node = refine(comfy_host, upstream, clip, airplane, mu="10")
    seen = effective(upstream, key)
    expected = seen + seen @ node[1].transform_delta.float()
    torch.testing.assert_close(effective(node[0], key), expected, rtol=1e-4, atol=1e-5)
    assert len(upstream.patches[key]) == 1


def test_another_lambda_is_a_new_solve_only(comfy_host, demo, airplane, monkeypatch):
    model, clip, _ = demo
    refine(comfy_host, model, clip, airplane, mu="10")
    encoder = comfy_host.module("nodes.host.text").TextEncoder
    encoded = []
    real = encoder.encode_pooled
    monkeypatch.setattr(encoder, "encode_pooled", lambda self, prompts: encoded.extend(prompts) or real(self, prompts))
    refine(comfy_host, model, clip, airplane, mu="20")
    assert len(encoded) <= len(comfy_host.module("mace.method.prior").PROBE_PROMPTS)
    skipped = clip.clone()
    skipped.clip_layer(-2)
    refine(comfy_host, model, skipped, airplane, mu="20")
    assert len(encoded) > 60


@pytest.mark.long
def test_the_words_around_stop_carrying_the_concept(comfy_host, demo):
    """Fig. 2: with the concept's own tokens replaced, the base still draws it and the refined model does not;
    the concept's neighbours stay."""
    model, clip, vae = demo
    judge = Judge(Path(__file__).parent.parent / "assets/demo/judge.safetensors")

    def accuracy(patched, prompt, name, batch=4):
        pictures = comfy_host.decode(vae, comfy_host.sample(patched, clip, prompt, seed=7, steps=8, batch=batch))
        return judge.accuracy(pictures, name)

    refined = refine(comfy_host, model, clip, concepts(comfy_host, "dog -> sky"))
    residual = comfy_host.run("MACE_ResidualPrompt", clip=clip, prompt="a photo of the dog", phrase="dog")[0]
    assert accuracy(model, residual, "dog") >= 0.75
    assert accuracy(refined[0], residual, "dog") <= 0.25
    for name in ("wolf", "cat", "ship", "rose"):
        assert accuracy(refined[0], f"a photo of the {name}", name, batch=1) == 1


def test_own_words_are_read_as_the_mapping_where_asked(comfy_host, demo):
    model, clip, _ = demo
    chosen = concepts(comfy_host, "dog -> sky")
    template = chosen[0].prompts[0]
    place = template.split().index("{}") + 1
    own, wanted = (
        comfy_host.encode(clip, template.replace("{}", word))[0][0][0][place].double() for word in ("dog", "sky")
    )
    left = {}
    for choice in ("off", "on", "auto"):
        done = refine(comfy_host, model, clip, chosen, mu="10", own_words=choice)[1]
        assert done.own_words == (choice == "on")
        left[choice] = float((own + done.transform_delta @ own - wanted).norm() / (own - wanted).norm())
    assert left["on"] < 0.2 < 0.3 < left["off"] == left["auto"]


def test_aliases_add_their_prompts(comfy_host, demo):
    model, clip, _ = demo
    plain = refine(comfy_host, model, clip, concepts(comfy_host, "airplane -> ground"), mu="10")[1]
    aliased = refine(comfy_host, model, clip, concepts(comfy_host, "airplane | jet -> ground"), mu="10")[1]
    assert aliased.moments[0].prompts == 2 * plain.moments[0].prompts
    assert not torch.allclose(aliased.transform_delta, plain.transform_delta)


def test_mixed_types_chain(comfy_host, demo):
    people = concepts(comfy_host, "", type="celebrity", preset="1 celebrity")
    explicit = concepts(comfy_host, "nudity", type="explicit", more=people)
    mixed = concepts(comfy_host, "airplane", more=explicit)
    assert [c.type for c in mixed] == ["celebrity", "explicit", "object"]
    node = refine(comfy_host, *demo[:2], mixed)
    assert node[1].weights.mu == 1000 and node[1].weights.lambda1 == pytest.approx(1e-4)


def test_messages_that_stop_before_anything_runs(comfy_host):
    assert "line 2" in comfy_host.validate("MACE_Concepts", concepts="dog\n-> x")
    assert "neither auto nor a number" in comfy_host.validate("MACE_CFRRefine", lambda1="a lot")
    assert "neither auto nor a number" in comfy_host.validate("MACE_CFRRefine", mu="-1")
    assert comfy_host.validate("MACE_CFRRefine", lambda1="1e-4", lambda3="AUTO", mu="0.1") is True
    assert "does not stand" in comfy_host.validate("MACE_ResidualPrompt", prompt="a category", phrase="cat")


def test_errors_name_the_cure(comfy_host, demo, airplane):
    model, clip, _ = demo
    with pytest.raises(ValueError, match="connect a prior"):
        refine(comfy_host, model, clip, concepts(comfy_host, "Claude Monet", type="style"))
    with pytest.raises(ValueError, match="list of concepts is empty"):
        concepts(comfy_host, "# nothing")
    damaged = model.clone()
    key = "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight"
    shape = model.model.state_dict()[key].shape
    damaged.add_patches({key: ("diff", (torch.full(shape, float("nan")),))})
    with pytest.raises(ValueError, match=r"to_k\.weight.*not finite"):
        refine(comfy_host, damaged, clip, airplane, mu="10")
