"""The blueprint of all stages, run node by node in the real host: what Erase Concepts does in one."""

import copy
import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from devtools.graph import to_prompt
from tests.stages import delta_of, report

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("few_templates")]

BLUEPRINT = Path(__file__).resolve().parent.parent / "subgraphs/Erase concepts, stage by stage (MACE).json"
# What its outside gives, in the order of its inputs.
GIVEN = ("model", "clip", "vae", "more concepts", "seed", "find_aliases", "preserve", "keep_near")
SWITCH, JOINED = "ComfySwitchNode", "StringConcatenate"
IMAGES, CAPTIONS, STEPS = 2, 20, 3
TRIED = "stag, horse"


@pytest.fixture(scope="module")
def inside() -> dict:
    (found,) = json.loads(BLUEPRINT.read_text(encoding="utf-8"))["definitions"]["subgraphs"]
    return found


def flat(inside: dict) -> dict:
    """The inner nodes as a workflow of their own, whose outer links are cut."""
    workflow = copy.deepcopy({"nodes": inside["nodes"], "links": inside["links"]})
    workflow["links"] = [link for link in workflow["links"] if link["origin_id"] > 0 and link["target_id"] > 0]
    kept = {link["id"] for link in workflow["links"]}
    for node in workflow["nodes"]:
        for slot in node["inputs"]:
            slot["link"] = slot["link"] if slot["link"] in kept else None
    return workflow


def from_outside(inside: dict) -> dict[tuple[int, str], str]:
    """(node, input) -> what the outside gives it."""
    names = {node["id"]: [slot["name"] for slot in node["inputs"]] for node in inside["nodes"]}
    given = [slot["name"] for slot in inside["inputs"]]
    return {
        (link["target_id"], names[link["target_id"]][link["target_slot"]]): given[link["origin_slot"]]
        for link in inside["links"]
        if link["origin_id"] < 0
    }


def run(host, inside: dict, outer: dict, changed: dict[str, dict]) -> dict[str, object]:
    """What the fusion asks for, by the nodes' types. changed: settings in place of the saved ones, by type."""
    classes = classes_of(host)
    info = {name: {"input": classes[name].INPUT_TYPES()} for name in {node["type"] for node in inside["nodes"]}}
    prompt = to_prompt(flat(inside), info)
    links, done = from_outside(inside), {}

    def ask(node: str):
        if node not in done:
            kind = prompt[node]["class_type"]
            inputs = {**prompt[node]["inputs"], **changed.get(kind, {})}
            inputs |= {name: outer[own] for (key, name), own in links.items() if str(key) == node and own in outer}
            if kind == SWITCH:
                # The other side is not asked.
                wanted = ("switch", *classes[SWITCH].check_lazy_status(inputs["switch"]))
                inputs = {name: given if name in wanted else None for name, given in inputs.items()}
            inputs = {
                name: ask(given[0])[given[1]] if isinstance(given, list) else given for name, given in inputs.items()
            }
            own = kind in (SWITCH, JOINED)
            done[node] = classes[kind].execute(**inputs) if own else host.run(kind, **inputs)
        return done[node]

    ask(next(node for node, own in prompt.items() if own["class_type"] == "MACE_FuseLoras"))
    return {prompt[node]["class_type"]: output for node, output in done.items()}


def classes_of(host) -> dict:
    """The pack's nodes, and the host's switch and what joins texts."""
    from comfy_extras.nodes_logic import SwitchNode
    from comfy_extras.nodes_string import StringConcatenate

    return {**host.node_classes, SWITCH: SwitchNode, JOINED: StringConcatenate}


def test_its_sockets_and_links_are_whole(comfy_host, inside):
    """Every link is known at both its ends, and what stands outside is there within."""
    assert tuple(slot["name"] for slot in inside["inputs"]) == GIVEN
    nodes = {node["id"]: node for node in inside["nodes"]}
    for link in inside["links"]:
        origin = inside["inputs"] if link["origin_id"] < 0 else nodes[link["origin_id"]]["outputs"]
        target = inside["outputs"] if link["target_id"] < 0 else nodes[link["target_id"]]["inputs"]
        ends = origin[link["origin_slot"]], target[link["target_slot"]]
        assert {end["type"] for end in ends} == {link["type"]}
        assert link["id"] in (ends[0].get("links") or ends[0].get("linkIds"))
        assert ends[1].get("link") == link["id"] or link["id"] in ends[1].get("linkIds", ())
    ids = [link["id"] for link in inside["links"]]
    assert len(set(ids)) == len(ids) and inside["state"]["lastLinkId"] == max(ids)
    (outside,) = json.loads(BLUEPRINT.read_text(encoding="utf-8"))["nodes"]
    assert [slot["name"] for slot in outside["inputs"]] == list(GIVEN)
    for key, name in outside["properties"]["proxyWidgets"]:
        inputs = classes_of(comfy_host)[nodes[int(key)]["type"]].INPUT_TYPES()
        assert any(name in group for group in inputs.values())


def test_its_outside_has_what_the_help_lists(inside):
    (outside,) = json.loads(BLUEPRINT.read_text(encoding="utf-8"))["nodes"]
    page = (BLUEPRINT.parent.parent / "web/docs/MACE_EraseConcepts.md").read_text(encoding="utf-8")
    told = page[page.index("On its outside are") : page.index("has no counterpart")]
    linked = from_outside(inside)
    shown = [linked.get((int(key), name), name) for key, name in outside["properties"]["proxyWidgets"]]
    assert "preview_prompt" in shown and [name for name in shown if not re.search(rf"\b{name}\b", told)] == []


@pytest.mark.parametrize(
    "words, kind, asks",
    [
        pytest.param("Twemoji -> art", "style", False, marks=pytest.mark.long),
        ("dog -> sky", "object", False),
        ("deer -> street", "object", True),
    ],
)
def test_it_erases_as_erase_concepts_does(comfy_host, demo, inside, monkeypatch, words, kind, asks):
    """Also what a prior is needed for: it has one of its own. asks: for other words, to erase and to keep."""
    model, clip, vae = demo
    stage, presets = (comfy_host.module(name) for name in ("nodes.stages.erasing", "mace.presets.presets"))
    # To ask for words by, pictures must show something.
    drawn = 12 if asks else STEPS
    monkeypatch.setattr(stage, "IMAGES", IMAGES)
    monkeypatch.setattr(stage, "SAMPLING", {**stage.SAMPLING, "steps": drawn})
    monkeypatch.setattr(stage, "AliasSettings", partial(stage.AliasSettings, words=TRIED))
    monkeypatch.setattr(stage, "CAPTIONS", stage.CaptionSource("built-in", CAPTIONS, seed=0))
    monkeypatch.setattr(comfy_host.module("nodes.erase.prior"), "USUAL", CAPTIONS)
    paper = presets.PRESETS[presets.PAPER]
    short = replace(paper, lora=lambda type: replace(paper.lora(type), steps=STEPS))
    every = {**presets.PRESETS, presets.PAPER: short}
    monkeypatch.setattr(comfy_host.module("nodes.host.preset_files"), "PRESETS", every)
    small = {"width": 64, "height": 64}
    whole = comfy_host.run(
        "MACE_EraseConcepts",
        model=model, clip=clip, vae=vae, preset=presets.PAPER, words=words, type=kind, strengths="", seed=3,
        preview_prompt="a photo", find_aliases=asks, keep_near=asks, **small,
    )  # fmt: skip
    changed = {
        "MACE_Concepts": {"concepts": words, "type": kind},
        "MACE_ConceptImages": {"count": IMAGES, "steps": drawn, **small},
        "MACE_FindAliases": {"words": TRIED, "thumbnails": 0},
        "MACE_FuseLoras": {"preview_prompt": "a photo", **small},
    }
    outer = {"model": model, "clip": clip, "vae": vae, "seed": 3, "find_aliases": asks}
    outer |= {"preserve": "", "keep_near": asks}
    staged = run(comfy_host, inside, outer, changed)
    aliases = [entry.concept.aliases for entry in staged["MACE_TrainErasureLora"][0].loras]
    assert aliases == [("stag",) if asks else ()] and ("MACE_FindAliases" in staged) == asks
    prior = staged["MACE_Prior"]
    assert f"{CAPTIONS} captions (built-in" in report(prior) and ("horse" in prior[0].preserved) == asks
    fused = staged["MACE_FuseLoras"][0]
    assert set(fused.patches) == set(whole[0].patches) and fused.patches
    for key in fused.patches:
        torch.testing.assert_close(delta_of(fused, key), delta_of(whole[0], key), rtol=1e-4, atol=1e-6)
    assert len(staged["MACE_FuseLoras"].ui["a_images"]) == 2
