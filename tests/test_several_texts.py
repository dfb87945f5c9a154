"""Models that read a prompt by several texts of their own: a T for each, in refinement, prior and its file.

HiDream-I1 reads layers of Llama and T5, HunyuanDiT two encoders and the second one's mean.
"""

import uuid

import pytest
import torch

from mace.method.tokens import fill
from tests import oracle
from tests.families import build
from tests.lanes import usually
from tests.port_cases import EDITED
from tests.port_cases import MODELS as SMALL
from tests.stages import delta_of, report
from tests.test_refine_node import concepts, refine
from tests.text_encoders import bert, build_clip, t5

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("few_templates")]

# HunyuanDiT's as wide, as the published one is, as the few prompts have rows: padding has rows of its own.
MODELS = {
    "hidream": ("hidream", {}),
    "hydit": ("hydit12", SMALL["hydit"][1] | dict(text_states_dim=384, text_states_dim_t5=800)),
}
ENCODERS = {"hidream": {}, "hydit": dict(hydit_clip=bert(384), mt5xl=t5(800))}
PRIOR = dict(seed=0, preserve_type="object", retention="none")


@pytest.fixture(scope="module", params=usually(MODELS, ("hidream",)))
def given(request, comfy_host):
    """(name, MODEL, CLIP)."""
    family, sizes = MODELS[request.param]
    with pytest.MonkeyPatch.context() as patched, torch.inference_mode():
        yield request.param, build(family, patched, **sizes), build_clip(request.param, **ENCODERS[request.param])


def predicted(comfy_host, model, clip, prompt):
    """What a model makes of noise in one step."""
    import comfy.sample

    conditioning = comfy_host.encode(clip, prompt)
    channels = model.model.latent_format.latent_channels
    noise = torch.randn(1, channels, 16, 16, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        return comfy.sample.sample(
            model, noise, 1, 1.0, "euler", "simple", conditioning, conditioning, torch.zeros_like(noise), seed=0
        )


def test_all_texts_together_draw_the_mapping(comfy_host, given):
    """With the paper's mu the model draws what it draws of the mapping; not where one text is left."""
    _, model, clip = given
    chosen = concepts(comfy_host, "dog -> cat")
    seen = chosen[0].prompts[0]
    node = refine(comfy_host, model, clip, chosen, mu="0.1")
    before, wanted = (predicted(comfy_host, model, clip, seen.replace("{}", word)) for word in ("dog", "cat"))
    missed = (predicted(comfy_host, node[0], clip, seen.replace("{}", "dog")) - wanted).norm()
    assert missed < 0.1 * (before - wanted).norm()
    name = given[0]
    for layers in (EDITED[name][0], *EDITED[name][2:]):
        partly = node[0].clone()
        # The host tells by it whether what it has loaded is still right.
        partly.patches_uuid = uuid.uuid4()
        for layer in layers:
            del partly.patches[f"diffusion_model.{layer}.weight"]
        assert (predicted(comfy_host, partly, clip, seen.replace("{}", "dog")) - wanted).norm() > 1.1 * missed
    assert f"{len(EDITED[name]) - 2} further texts of the prompt too" in report(node)
    unet = comfy_host.module("nodes.host.model.unet")
    record = node[0].get_attachment(unet.ATTACHMENT)[-1]
    assert record["further_texts"] == len(EDITED[name]) - 2 and record["own_words"] is True
    around = refine(comfy_host, model, clip, chosen, mu="0.1", own_words="off")
    assert around[0].get_attachment(unet.ATTACHMENT)[-1]["own_words"] is False
    assert "their own words" not in report(around)


def test_each_text_is_least_squares_with_its_own_prior(comfy_host, given):
    name, model, clip = given
    chosen = concepts(comfy_host, "dog -> cat")
    settings = dict(PRIOR, captions="built-in", count=3, preserve="horse")
    prior = comfy_host.run("MACE_Prior", clip=clip, model=model, **settings)[0]
    assert len(prior.others) == len(EDITED[name]) - 2
    lambda1, lambda3 = 1e-7, 0.5
    node = refine(comfy_host, model, clip, chosen, mu="0.1", lambda1=repr(lambda1), lambda3=repr(lambda3), prior=prior)
    text = comfy_host.module("nodes.host.port_text").PortText(model, clip)
    captions = [features.texts for features in text.features(prior.texts.captions)]
    kept = [features.texts for features in text.features(prior.texts.prompts[0])]
    for place, layers in enumerate((EDITED[name][0], *EDITED[name][2:])):
        ours, theirs = [], []
        for template, phrase in chosen[0].readings:
            prompts = fill(template, phrase), fill(template, chosen[0].mapping)
            f, g = (each.texts[place] for each in text.features(prompts))
            pairing = text.pair(template, phrase, chosen[0].mapping, f, g, place)
            ours.append(f.values[[*pairing.target, *pairing.phrase]].double())
            theirs.append(g.values[[*pairing.mapping, *pairing.own]].double())
        f, g = torch.cat(ours), torch.cat(theirs)
        general, preserve = (torch.cat([own[place].values for own in rows]).double() for rows in (captions, kept))
        # P is the mean of the captions', as many times as COCO has captions.
        problem = oracle.Problem(
            f, g, general, preserve, lambda1 * 616_767 / len(captions), lambda3, 0.1 * float(f.square().mean())
        )
        for layer in layers:
            key = f"diffusion_model.{layer}.weight"
            weight = model.model.state_dict()[key].double()
            found = weight + delta_of(node[0], key).double()
            torch.testing.assert_close(found, oracle.minimiser(weight, problem), rtol=1e-4, atol=1e-4)


def test_the_prior_steps_aside_in_every_text(comfy_host, given, tmp_path):
    """Saved, loaded, and without the captions that name the target: the prior that was made without them."""
    name, model, clip = given
    lines = ("a dog on a mat", "the sky", "two boats")
    files = comfy_host.module("mace.formats.prior_file")
    (tmp_path / "all.txt").write_text("\n".join(lines))
    (tmp_path / "less.txt").write_text("\n".join(lines[1:]))
    paths = comfy_host.folder_paths
    before = paths.get_input_directory()
    paths.set_input_directory(str(tmp_path))
    try:
        whole, less = (
            comfy_host.run("MACE_Prior", clip=clip, model=model, captions=file, count=9, preserve="", **PRIOR)[0]
            for file in ("all.txt", "less.txt")
        )
    finally:
        paths.set_input_directory(before)
    loaded = files.prior_from_file(*files.prior_to_file(whole))
    weights = dict(mu="0.1", lambda1="1e-7")
    chosen = concepts(comfy_host, "dog -> cat")
    aside, expected = (refine(comfy_host, model, clip, chosen, prior=own, **weights) for own in (loaded, less))
    assert "taken out of the prior: 1 of 3 captions" in report(aside)
    held = refine(comfy_host, model, clip, chosen, mu="0.1")
    for layers in EDITED[name]:
        key = f"diffusion_model.{layers[0]}.weight"
        torch.testing.assert_close(delta_of(aside[0], key), delta_of(expected[0], key), rtol=1e-4, atol=1e-6)
        assert not torch.allclose(delta_of(held[0], key), delta_of(expected[0], key), rtol=1e-2, atol=1e-5)
    with pytest.raises(ValueError, match="does not hold all texts"):
        loaded.check(loaded.fingerprint)


def test_wide_texts_are_refined_in_the_span_of_their_rows(comfy_host, given, monkeypatch):
    """Width counts over all texts together."""
    name, model, clip = given
    chosen = concepts(comfy_host, "dog -> cat")
    expected = refine(comfy_host, model, clip, chosen, mu="0.1")
    ports = comfy_host.module("nodes.host.port_text")
    text = ports.PortText(model, clip)
    monkeypatch.setattr(ports, "WIDE", max(text.widths))
    monkeypatch.setattr(ports, "_store", type(ports._store)(2**30))
    rows = refine(comfy_host, model, clip, chosen, mu="0.1")
    moments = rows[1].moments[0]
    assert type(moments).__name__ == "RowMoments" and [own.width for own in moments.others] == list(text.other_widths)
    for layers in EDITED[name]:
        key = f"diffusion_model.{layers[0]}.weight"
        torch.testing.assert_close(delta_of(rows[0], key), delta_of(expected[0], key), rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match=r"wide and a prior would take .* refined without"):
        comfy_host.run("MACE_Prior", clip=clip, model=model, captions="built-in", count=1, preserve="", **PRIOR)


def test_the_text_of_an_encoder_that_is_not_loaded_is_left(comfy_host, monkeypatch):
    """HiDream-I1 draws without T5, whose rows are zeros then."""
    with torch.inference_mode():
        model, clip = build("hidream", monkeypatch), build_clip("hidream")
        clip.cond_stage_model.t5xxl = None
    monkeypatch.setattr(clip, "encode_from_tokens_scheduled", _narrow(clip.encode_from_tokens_scheduled), raising=True)
    node = refine(comfy_host, model, clip, concepts(comfy_host, "dog -> cat"), mu="0.1")
    assert "left as they are, though they read some prompts: caption_projection.2.linear" in report(node)
    edited = ("caption_projection.0.linear", "caption_projection.1.linear", "p_embedder.pooled_embedder.linear_1")
    assert sorted(node[0].patches) == [f"diffusion_model.{layer}.weight" for layer in edited]


def _narrow(encode):
    """The host's zeros in T5's place are 4096 wide; this T5 is 24."""

    def encoded(tokens):
        found = encode(tokens)
        found[0][0] = found[0][0][..., :24]
        return found

    return encoded
