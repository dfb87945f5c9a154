"""One choice of settings travels with the concepts, through every node behind them, in the real host."""

import re
from dataclasses import replace

import pytest
import torch

from mace.presets.presets import PAPER, PRESETS
from tests.stages import delta_of, fuse, images, report, train
from tests.test_refine_node import concepts

pytestmark = pytest.mark.host

DEMO, LISTS, RELEASED = "demo model (mace_demo)", "demo model, lists of any length", "paper, as released"
AUTO = dict(strength=1.0, lambda1="auto", lambda3="auto", mu="auto", projections="both", lambda1_form="auto")
OF_CONCEPTS = "that of the concepts"
NOTHING = dict(seed=0, preserve="", preserve_type="object", retention="none")


def listed(host, lines, **given):
    return host.run("MACE_Concepts", concepts=lines, preset="none", prompt_file="none", **{"type": "object", **given})[
        0
    ]


def refined(host, demo, chosen, **given):
    return host.run("MACE_CFRRefine", model=demo[0], clip=demo[1], concepts=chosen, **{**AUTO, **given})


def test_a_chain_carries_the_one_choice_that_was_made(comfy_host):
    first = listed(comfy_host, "dog", settings=DEMO)
    assert first.preset == DEMO and listed(comfy_host, "dog").preset == ""
    assert listed(comfy_host, "cat", more=first).preset == DEMO
    assert listed(comfy_host, "cat", more=listed(comfy_host, "dog"), settings=DEMO).preset == DEMO
    with pytest.raises(ValueError, match=re.escape(f"its parts have {DEMO!r} and {LISTS!r}")):
        listed(comfy_host, "cat", more=first, settings=LISTS)


def test_without_a_choice_auto_is_table_10(comfy_host, demo):
    chosen = concepts(comfy_host, "dog -> sky")
    node = refined(comfy_host, demo, chosen)
    assert node[1].weights.mu == 10 and node[1].weights.metric == "alike"
    # As text in what LoRAs are kept by: auto, whatever it takes for this list.
    assert dict(node[1].settings) == {
        "lambda1": "auto",
        "lambda3": "auto",
        "mu": "auto",
        "lambda1_form": "paper",
        "mu_measures": "embeddings (paper)",
    }
    assert "auto:" not in report(node)


def test_every_node_behind_takes_the_choice(comfy_host, demo, monkeypatch):
    demo_preset = PRESETS[DEMO]
    chosen = listed(comfy_host, "dog -> sky", settings=DEMO)
    prior = comfy_host.run(
        "MACE_Prior",
        clip=demo[1],
        captions="built-in",
        count=20,
        seed=0,
        preserve="",
        preserve_type="object",
        retention="none",
        concepts=chosen,
    )[0]
    node = refined(comfy_host, demo, chosen, prior=prior)
    wanted = demo_preset.refine(1)
    assert (node[1].weights.lambda1, node[1].weights.mu) == (wanted.lambda1, wanted.mu)
    assert node[1].weights.metric == wanted.metric and report(node).startswith(f"auto: {DEMO}")
    by_hand = refined(comfy_host, demo, chosen, prior=prior, mu="7", mu_measures="embeddings (paper)")
    assert (by_hand[1].weights.lambda1, by_hand[1].weights.mu) == (wanted.lambda1, 7)
    assert by_hand[1].weights.metric == "alike"

    shown = images(comfy_host, demo, chosen)[0]
    assert [entry.preset for entry in shown] == [DEMO]
    loras = train(comfy_host, demo[1], node[0], shown, preset=OF_CONCEPTS, rank="auto", learning_rate="auto")
    settings = loras[0].loras[0].settings
    row = demo_preset.lora("object")
    assert (settings["rank"], settings["learning_rate"]) == (row.rank, row.learning_rate)
    assert settings["end_of_text"] and settings["focus"] and report(loras).startswith(f"auto: {DEMO}")
    own = train(comfy_host, demo[1], node[0], shown, preset=PAPER, rank="auto", learning_rate="auto")
    assert own[0].loras[0].settings["learning_rate"] == 1e-5 and "auto:" not in report(own)

    weights = demo_preset.fuse(1)
    for given in (dict(refinement=node[1]), {}):
        said = report(fuse(comfy_host, demo[0], loras[0], clip=demo[1], **given))
        assert said.startswith(f"auto: {DEMO}\nlambda2 {weights.lambda2:g}\n") and f"\nmu {weights.mu:g}\n" in said
    assert "mu 3\n" in report(fuse(comfy_host, demo[0], loras[0], clip=demo[1], mu="3"))
    assert "pull" not in report(fuse(comfy_host, demo[0], loras[0], clip=demo[1], pull="auto"))
    # Of a preset with a pull of its own, whose weights stand as they are.
    known, method = comfy_host.module("nodes.host.preset_files").PRESETS, comfy_host.module("mace.method.fuse")
    own = method.FuseWeights(weights.lambda2, mu=3.0, pull=method.ALL_TO_REFINED)
    monkeypatch.setitem(known, DEMO, replace(known[DEMO], fuse=lambda count: own))
    said = report(fuse(comfy_host, demo[0], loras[0], clip=demo[1], pull="auto"))
    assert "\nmu 3\n" in said and "\npull: prior too (refined weights)\n" in said
    numbers = dict(lambda2="0.1", lambda3="0", mu="3")
    assert "\npull: prior too" in report(fuse(comfy_host, demo[0], loras[0], clip=demo[1], pull="auto", **numbers))
    unlike = "pull: refined weights (release), where the settings have prior too (refined weights)"
    assert unlike in report(fuse(comfy_host, demo[0], loras[0], clip=demo[1]))
    monkeypatch.undo()

    files = comfy_host.module("mace.formats.lora_set_file")
    again = files.set_from_file(*files.set_to_file(loras[0], True))
    assert again.recipe.preset == DEMO
    assert f"auto: {DEMO}" in report(fuse(comfy_host, demo[0], again, clip=demo[1]))


def test_find_aliases_hands_it_on(comfy_host, demo):
    shown = images(comfy_host, demo, listed(comfy_host, "dog -> sky", settings=DEMO))[0]
    given = dict(words="dog", keep="", neighbours=0, nearest=1, threshold=0.9, most=1, pictures=1, seed=0)
    node = comfy_host.run("MACE_FindAliases", model=demo[0], clip=demo[1], images=shown, **given)
    assert node[0].preset == DEMO and [entry.preset for entry in node[1]] == [DEMO]


def test_loras_of_default_choices_are_found_again(comfy_host, demo):
    """Left to the concepts without a choice is the paper's: the same LoRA, trained once."""
    chosen = concepts(comfy_host, "ship -> ground")
    model = refined(comfy_host, demo, chosen)[0]
    shown = images(comfy_host, demo, chosen)[0]
    train(comfy_host, demo[1], model, shown, preset=PAPER, seed=11)
    assert "0 LoRAs trained, 1 of 1 kept" in report(
        train(comfy_host, demo[1], model, shown, preset=OF_CONCEPTS, seed=11)
    )


@pytest.mark.usefixtures("few_templates")
@pytest.mark.parametrize("preset", [DEMO, LISTS])
def test_a_longer_list_keeps_what_was_trained_though_its_weights_grow(comfy_host, demo, preset):
    """A preset's weight that grows counts by its form, from both nodes; a number that is written counts as a number."""
    key = comfy_host.module("nodes.host.kept.content").training_key
    lines = [f"thing number {n} -> sky" for n in range(12)]
    lists = [listed(comfy_host, "\n".join(lines[:count]), settings=preset) for count in (1, 2, 12)]
    prior = comfy_host.run("MACE_Prior", clip=demo[1], captions="built-in", count=20, **NOTHING)[0]
    nodes = [refined(comfy_host, demo, chosen, prior=prior) for chosen in lists]
    weights = [node[1].weights.lambda1 for node in nodes]
    assert weights[0] < weights[2] and len({key(node[0]) for node in nodes}) == 1
    stage, found = (comfy_host.module(f"nodes.{name}") for name in ("stages.erasing", "host.preset_files"))
    chosen = found.find_preset(preset)
    whole, refinement, *_ = stage.refine_as_preset(*demo[:2], lists[2], chosen, prior)
    assert key(whole) == key(nodes[0][0]) and refinement.own_words == chosen.closed_form
    assert all(torch.equal(delta_of(whole, name), delta_of(nodes[2][0], name)) for name in whole.patches)
    written = refined(comfy_host, demo, lists[0], prior=prior, lambda1=repr(weights[0]))
    assert written[1].weights == nodes[0][1].weights and key(written[0]) != key(nodes[0][0])


def test_the_published_codes_behaviour_is_a_choice(comfy_host, demo):
    """End-of-text in the loss, a sum of norms, lambda1 squared; the paper's stays as it was."""
    chosen = listed(comfy_host, "Twemoji -> art", type="style", settings=RELEASED)
    prior = comfy_host.run(
        "MACE_Prior",
        clip=demo[1],
        captions="built-in",
        count=20,
        seed=0,
        preserve="",
        preserve_type="object",
        retention="none",
    )[0]
    node = refined(comfy_host, demo, chosen, prior=prior)
    assert node[1].weights.lambda1 == pytest.approx(1e-8) and node[1].settings["lambda1_form"].startswith("as released")
    shown = images(comfy_host, demo, chosen)[0]
    settings = train(comfy_host, demo[1], node[0], shown, preset=OF_CONCEPTS)[0].loras[0].settings
    assert settings["end_of_text"] and settings["loss"] == "sum of norms (release)" and not settings["focus"]
    paper = refined(comfy_host, demo, listed(comfy_host, "Twemoji -> art", type="style"), prior=prior)
    assert paper[1].weights.lambda1 == 1e-4


def test_a_preset_that_is_gone_is_named(comfy_host, demo):
    chosen = comfy_host.module("mace.concepts.concept").ConceptList(concepts(comfy_host, "dog -> sky"), "mine")
    with pytest.raises(ValueError, match="there is no preset 'mine' here"):
        refined(comfy_host, demo, chosen)
    # LoRAs from another machine are fused by weights that stand there, whatever their settings are called.
    plain = concepts(comfy_host, "dog -> sky")
    model = refined(comfy_host, demo, plain, mu="10")[0]
    made = train(comfy_host, demo[1], model, images(comfy_host, demo, plain)[0])[0]
    loras = replace(made, recipe=replace(made.recipe, preset="mine"))
    given = dict(pull="auto", lambda2="0", lambda3="0", clip=demo[1])
    said = report(fuse(comfy_host, demo[0], loras, **given, mu="3"))
    assert "mu 3\n" in said and "pull: refined weights (release), for there is no preset 'mine' here" in said
    with pytest.raises(ValueError, match="there is no preset 'mine' here"):
        fuse(comfy_host, demo[0], loras, **given)
