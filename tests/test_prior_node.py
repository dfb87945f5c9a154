"""Prior, Save Prior and Load Prior in the real host."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.test_refine_node import concepts, refine

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("few_templates")]

NOTHING = dict(seed=0, preserve="", preserve_type="object", retention="none")
LINES = [
    "a photo of a cat on a red chair",
    "two dogs in the street",
    "the sky over a house (in winter)",
    "a drawing of a rose",
    "a green car",
]


@pytest.fixture(scope="module")
def captions(comfy_host):
    """A caption file in the host's input folder, with a byte order mark, a comment and a caption too long for CLIP."""
    long = " ".join(["house"] * 80)
    text = "\ufeff# mine\n" + "\n".join([*LINES, long]) + "\n"
    (comfy_host.base / "input" / "captions.txt").write_text(text, encoding="utf-8")
    return "captions.txt"


def prior_of(host, clip, **inputs):
    return host.run("MACE_Prior", clip=clip, **{**NOTHING, **inputs})


def moment(host, clip, prompts):
    """sum e e^T, each prompt encoded on its own by the host."""
    rows = torch.cat([host.encode(clip, prompt)[0][0][0] for prompt in prompts]).double()
    return rows.T @ rows


def test_moments_are_those_of_the_captions(comfy_host, demo, captions):
    clip = demo[1]
    erased = concepts(comfy_host, "dog -> sky")
    out = prior_of(comfy_host, clip, captions=captions, count=100, preserve="ship | boat", concepts=erased)
    kept = [line.replace("(", r"\(").replace(")", r"\)") for line in LINES if "dog" not in line]
    found = out[0]
    assert found.captions == 4 and found.left_out == ("dog",) and found.preserved == ("ship", "boat")
    expected = moment(comfy_host, clip, kept) * (616_767 / len(kept))
    scale = float(expected.abs().max())
    torch.testing.assert_close(found.general_moment(), expected, rtol=0, atol=1e-4 * scale)
    templates = comfy_host.module("mace.concepts.templates").TEMPLATES["object"]
    prompts = [template.replace("{}", phrase) for phrase in ("ship", "boat") for template in templates]
    expected = moment(comfy_host, clip, prompts)
    torch.testing.assert_close(found.preserve_moment(), expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
    preview = out.ui.as_dict()["text"][0]
    assert "1 left out because they name a target" in preview and "left out: two dogs" in preview
    assert "1 captions were too long" in preview and "ship, boat" in preview


def test_another_list_reads_only_what_it_leaves_out(comfy_host, demo, captions, monkeypatch):
    clip = demo[1]
    prior_of(comfy_host, clip, captions=captions, count=100)
    encoder = comfy_host.module("nodes.host.text").TextEncoder
    encoded, real = [], encoder.encode_pooled
    monkeypatch.setattr(encoder, "encode_pooled", lambda self, prompts: encoded.extend(prompts) or real(self, prompts))
    found = prior_of(comfy_host, clip, captions=captions, count=100, concepts=concepts(comfy_host, "cat\nrose"))[0]
    assert [prompt for prompt in encoded if prompt in LINES] == [LINES[0], LINES[3]]
    kept = [LINES[1], r"the sky over a house \(in winter\)", LINES[4]]
    expected = moment(comfy_host, clip, kept) * (616_767 / len(kept))
    torch.testing.assert_close(found.general_moment(), expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


@pytest.fixture
def nothing_kept(comfy_host, monkeypatch):
    """No sum of captions is kept from before."""
    results = comfy_host.module("mace.pipeline.store").LastResult()
    monkeypatch.setattr(comfy_host.module("mace.pipeline.prior"), "_last_general", results)


def test_a_slow_cpu_reads_fewer_captions_unless_told(comfy_host, demo, said, nothing_kept, monkeypatch):
    """Half of the usual ones, and so on, down to the fewest; what is read is the same as when so many are asked for."""
    stage = comfy_host.module("nodes.stages.captions")
    for name, value in (("USUAL", 160), ("FEWEST", 30)):
        monkeypatch.setattr(stage, name, value)
    monkeypatch.setattr(comfy_host.module("nodes.erase.prior"), "USUAL", 160)
    monkeypatch.setattr(stage, "LONGEST", 0)
    auto = prior_of(comfy_host, demo[1], captions="built-in", count=-1)
    report = auto.ui.as_dict()["text"][0]
    assert auto[0].captions == 40 and report.startswith("40 captions in place of 160, which would take this CPU about ")
    assert "reading 40 captions" in said[0]
    # Asked for again, they are the same ones, and at hand.
    again = prior_of(comfy_host, demo[1], captions="built-in", count=-1)
    assert torch.equal(again[0].mean, auto[0].mean) and said[-1] == "reading prompts"
    monkeypatch.setattr(stage, "SHOWN_FROM", 0.0)
    told = prior_of(comfy_host, demo[1], captions="built-in", count=160)
    assert told[0].captions == 160 and "in place of" not in told.ui.as_dict()["text"][0]
    assert said[-1].startswith("reading 160 captions, about ")
    asked = prior_of(comfy_host, demo[1], captions="built-in", count=40)
    assert torch.equal(asked[0].mean, auto[0].mean)


def test_what_is_kept_is_announced(comfy_host, demo, said, captions, nothing_kept, monkeypatch):
    # On a quick machine too.
    monkeypatch.setattr(comfy_host.module("nodes.stages.captions"), "SHOWN_FROM", 0.0)
    prior_of(comfy_host, demo[1], captions="built-in", count=0, preserve="ship\nrose", preserve_type="explicit")
    assert said[-1].startswith("reading 68 prompts of what is kept, about ")


def test_a_quick_device_reads_all(comfy_host, demo, said, captions, nothing_kept, monkeypatch):
    stage = comfy_host.module("nodes.stages.captions")
    monkeypatch.setattr(comfy_host.module("nodes.erase.prior"), "USUAL", 40)
    monkeypatch.setattr(stage, "FEWEST", 1)
    found = prior_of(comfy_host, demo[1], captions="built-in", count=-1)
    assert found[0].captions == 40 and found.ui.as_dict()["text"][0].startswith("40 captions (built-in")
    # A file is read whole where it holds fewer, and the estimate knows.
    found = prior_of(comfy_host, demo[1], captions=captions, count=-1)
    assert found[0].captions == len(LINES) and said[-1] == f"reading {len(LINES) + 1} captions"


def test_a_drawn_part_of_a_file(comfy_host, demo, captions):
    a = prior_of(comfy_host, demo[1], captions=captions, count=3, seed=5)[0]
    b = prior_of(comfy_host, demo[1], captions=captions, count=3, seed=6)[0]
    assert a.captions <= 3 and not torch.equal(a.mean, b.mean)


def test_coco_annotations(comfy_host, demo):
    path = comfy_host.base / "input" / "captions_val.json"
    path.write_text(json.dumps({"annotations": [{"caption": "A green car."}, {"caption": "A rose."}]}))
    assert prior_of(comfy_host, demo[1], captions="captions_val.json", count=10)[0].captions == 2


def test_retention_lists_and_lines_count_each_phrase_once(comfy_host):
    keepers = comfy_host.module("mace.pipeline.prior").keepers
    plain = keepers("", "object", "100 celebrities to keep")
    assert len(plain) == 100 and plain[0].type == "celebrity"
    both = keepers("someone | Bill Murray, nobody", "celebrity", "100 celebrities to keep")
    assert [c.target for c in both[100:]] == ["someone", "nobody"]


def test_saved_loaded_and_refused_elsewhere(comfy_host, demo, captions):
    model, clip, _ = demo
    made = prior_of(comfy_host, clip, captions=captions, count=100, preserve="ship")[0]
    (path,) = comfy_host.run("MACE_SavePrior", prior=made, filename_prefix="mace_priors/x").ui.as_dict()["text"]
    assert path.endswith("x_00001_.safetensors")
    node = comfy_host.run("MACE_LoadPrior", prior_name="x_00001_.safetensors")
    assert node.ui.as_dict()["text"] == (f"5 captions ({captions})\npreserved: ship",)
    loaded = node[0]
    assert torch.equal(loaded.mean, made.mean) and torch.equal(loaded.preserve, made.preserve)
    assert loaded.preserved == ("ship",) and loaded.captions == made.captions
    erased = concepts(comfy_host, "dog -> sky")
    refine(comfy_host, model, clip, erased, prior=loaded, lambda1="1e-4")
    skipped = clip.clone()
    skipped.clip_layer(-12)
    with pytest.raises(ValueError, match="another text encoder or another clip skip"):
        refine(comfy_host, model, skipped, erased, prior=loaded, lambda1="1e-4")


def test_a_file_of_an_earlier_version_says_what_it_cannot_do(comfy_host, demo, captions):
    for preserve, said in (("ship", "steps aside for no list"), ("", "left out: dog")):
        erased = concepts(comfy_host, "dog -> sky")
        made = prior_of(comfy_host, demo[1], captions=captions, count=100, preserve=preserve, concepts=erased)[0]
        made = replace(made, texts=None, made_of="")
        (path,) = comfy_host.run("MACE_SavePrior", prior=made, filename_prefix="mace_priors/old").ui.as_dict()["text"]
        text = comfy_host.run("MACE_LoadPrior", prior_name=Path(path).name).ui.as_dict()["text"][0]
        assert said in text and "without its texts" in text and ("preserved" in text) == bool(preserve)


def test_a_file_that_is_no_prior(comfy_host):
    (comfy_host.base / "models/mace_priors").mkdir(exist_ok=True)
    for name, content in (("text.safetensors", b"hello"), ("cut.safetensors", b"\x10\0\0\0\0\0\0\0{")):
        (comfy_host.base / "models/mace_priors" / name).write_bytes(content)
        with pytest.raises(ValueError, match="not a safetensors file or is damaged"):
            comfy_host.run("MACE_LoadPrior", prior_name=name)


def test_contradictions_are_errors(comfy_host, demo, captions):
    model, clip, _ = demo
    erased = concepts(comfy_host, "dog | hound -> sky")
    with pytest.raises(ValueError, match="'Hound' is both to be erased and to be preserved"):
        prior_of(comfy_host, clip, captions=captions, count=5, preserve="Hound", concepts=erased)
    keeps = prior_of(comfy_host, clip, captions=captions, count=5, preserve="hound")[0]
    keeps = replace(keeps, texts=None)  # as an earlier version saved it
    with pytest.raises(ValueError, match="'hound' is to be erased, and the prior preserves it"):
        refine(comfy_host, model, clip, erased, prior=keeps)
    with pytest.raises(ValueError, match="nothing to keep"):
        prior_of(comfy_host, clip, captions=captions, count=0)


def test_the_refinement_says_what_the_prior_does_not_do(comfy_host, demo, captions):
    model, clip, _ = demo
    made = prior_of(comfy_host, clip, captions=captions, count=100, preserve="ship")[0]
    auto = refine(comfy_host, model, clip, concepts(comfy_host, "dog -> sky"), prior=made)
    report = auto.ui.as_dict()["text"][0]
    # Who names what is to stay wants it to stay, also where Table 10 has no weight for it.
    assert "captions have no effect: lambda1 is 0" in report and auto[1].weights.lambda3 == 0.3
    assert "lambda3 0.3 for the names that are preserved: these settings have none" in report
    out = refine(comfy_host, model, clip, concepts(comfy_host, "dog -> sky"), prior=made, lambda3="0")
    assert "preserve have no effect: lambda3 is 0" in out.ui.as_dict()["text"][0] and out[1].weights.lambda3 == 0
    person = concepts(comfy_host, "Adam Driver -> person", type="celebrity")
    people = refine(comfy_host, model, clip, person, prior=made)
    assert people[1].weights.lambda3 == 0.8
    made = replace(made, texts=None)  # as an earlier version saved it
    out = refine(comfy_host, model, clip, concepts(comfy_host, "dog -> sky"), prior=made, lambda1="1e-4")
    assert "without leaving out captions that name dog" in out.ui.as_dict()["text"][0]


def test_a_loaded_prior_steps_aside_for_a_list(comfy_host, demo, captions, monkeypatch):
    """The same refinement as with a prior made anew, and nothing is read again for other weights."""
    model, clip, _ = demo
    whole = prior_of(comfy_host, clip, captions=captions, count=100, preserve="ship | boat")[0]
    comfy_host.run("MACE_SavePrior", prior=whole, filename_prefix="mace_priors/aside")
    loaded = comfy_host.run("MACE_LoadPrior", prior_name="aside_00001_.safetensors")[0]
    chosen = concepts(comfy_host, "dog -> sky\nvessel | boat -> sky")
    anew = prior_of(comfy_host, clip, captions=captions, count=100, preserve="ship", concepts=chosen)[0]
    weights = dict(lambda1="1e-4", lambda3="1", mu="10")
    expected = refine(comfy_host, model, clip, chosen, prior=anew, **weights)
    found = refine(comfy_host, model, clip, chosen, prior=loaded, **weights)
    report = found.ui.as_dict()["text"][0]
    assert (
        "taken out of the prior: 1 of 5 captions" in report
        and "no longer preserved, for it is erased now: boat" in report
    )
    assert (found[1].prior.captions, found[1].prior.preserved) == (4, ("ship",))
    for key, patches in expected[0].patches.items():
        own, theirs = (entry[-1][1][1][0].double() for entry in (patches, found[0].patches[key]))
        assert float((own - theirs).norm()) < 1e-6 * float(own.norm())
    # One for the list, which may be a sum less what is left out too, and one that never read anything else.
    (comfy_host.base / "input" / "kept.txt").write_text("\n".join(line for line in LINES if "dog" not in line))
    alone = prior_of(comfy_host, clip, captions="kept.txt", count=100, preserve="ship")[0]
    for other, name in itertools.product((anew, alone), ("mean", "preserve")):
        mine, theirs = (getattr(prior, name) for prior in (found[1].prior, other))
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-9 * float(theirs.abs().max()))
    record = comfy_host.module("nodes.files.save_model").provenance(found[0], clip)["stages"][-1]["prior"]
    assert record["stepped_aside"] == {"captions": 1, "preserved": ["boat"]}
    encoder = comfy_host.module("nodes.host.text").TextEncoder
    monkeypatch.setattr(encoder, "gram", None)
    again = refine(comfy_host, model, clip, chosen, prior=loaded, **{**weights, "mu": "20"})
    assert again[1].prior is found[1].prior


def test_captions_of_a_longer_name_that_stays_stay(comfy_host, demo):
    """With hot dog preserved its captions are no dog's, in a prior made for the list and in one that steps aside."""
    model, clip, _ = demo
    lines = ["a photo of a hot dog", "a dog on the street", "a dog by a hot dog", "the sky"]
    (comfy_host.base / "input" / "longer.txt").write_text("\n".join(lines), encoding="utf-8")
    given, chosen = dict(captions="longer.txt", count=100), concepts(comfy_host, "dog -> sky")
    for preserve, stay in (("hot dog", [lines[0], lines[3]]), ("ship", lines[3:])):
        anew = prior_of(comfy_host, clip, **given, preserve=preserve, concepts=chosen)[0]
        whole = prior_of(comfy_host, clip, **given, preserve=preserve)[0]
        found = refine(comfy_host, model, clip, chosen, prior=whole, lambda1="1e-4", lambda3="1", mu="10")[1].prior
        assert anew.texts.captions == found.texts.captions == tuple(stay)
        torch.testing.assert_close(found.mean, anew.mean, rtol=0, atol=1e-9 * float(anew.mean.abs().max()))


def test_a_lora_is_kept_by_the_prior_as_it_was_made(comfy_host, demo, captions):
    """By all of its captions and prompts, not by their file's name nor by what steps aside for a list."""
    model, clip, _ = demo
    key = comfy_host.module("nodes.host.kept.content").training_key
    chosen = concepts(comfy_host, "dog -> sky\nvessel | boat -> sky")
    file = comfy_host.base / "input" / "edited.txt"

    def key_of(prior, listed=chosen):
        return key(refine(comfy_host, model, clip, listed, prior=prior, lambda1="1e-4", lambda3="1", mu="10")[0])

    def edited(lines, **given):
        file.write_text("\n".join(lines), encoding="utf-8")
        return prior_of(comfy_host, clip, captions=file.name, **{"count": 100, "preserve": "ship | boat", **given})[0]

    whole = edited(LINES)
    copied = prior_of(comfy_host, clip, captions=captions, count=100, preserve="ship | boat")[0]
    assert whole.source != copied.source and key_of(whole) == key_of(copied)
    # What is left out and taken out for a list plays no part, nor does a way through a file.
    left_out = edited(LINES, concepts=concepts(comfy_host, "dog -> sky"))
    comfy_host.run("MACE_SavePrior", prior=left_out, filename_prefix="mace_priors/kept_by")
    loaded = comfy_host.run("MACE_LoadPrior", prior_name="kept_by_00001_.safetensors")[0]
    shorter = concepts(comfy_host, "dog -> sky")
    assert key_of(whole, shorter) == key_of(whole) == key_of(left_out) == key_of(loaded)
    others = [edited([*LINES[:4], "a blue car"]), edited(LINES[:4]), edited(LINES, preserve="ship")]
    # Of an earlier version all that is known is its sums.
    old = [replace(prior, texts=None, made_of="", preserve=None, preserved=()) for prior in (whole, others[0])]
    assert len({key_of(prior) for prior in (whole, *others, *old)}) == 6


def test_captions_stay_where_they_do_not_count(comfy_host, demo, captions):
    model, clip, _ = demo
    whole = prior_of(comfy_host, clip, captions=captions, count=100, preserve="ship")[0]
    found = refine(comfy_host, model, clip, concepts(comfy_host, "dog -> sky"), prior=whole, mu="10")
    assert found[1].prior is whole and "taken out" not in found.ui.as_dict()["text"][0]


def test_prior_and_preserved_concepts_enter_the_solve(comfy_host, demo, captions):
    """The node's transform against Eq. 19 written out, by a general solver."""
    model, clip, _ = demo
    chosen = concepts(comfy_host, "dog -> sky")
    made = prior_of(comfy_host, clip, captions=captions, count=100, preserve="ship", concepts=chosen)[0]
    result = refine(comfy_host, model, clip, chosen, prior=made, lambda1="1e-4", lambda3="2", mu="1")[1]
    (moments,) = result.moments
    unpack = comfy_host.module("mace.method.moments").unpack
    system = unpack(moments.paired) + 1e-4 * made.general_moment() + 2 * made.preserve_moment() + torch.eye(768)
    left = moments.cross + system - unpack(moments.paired)
    expected = torch.linalg.solve(system.double(), left, left=False) - torch.eye(768)
    torch.testing.assert_close(result.transform_delta, expected.double(), rtol=1e-6, atol=1e-8)
