"""Workflows that were shared: the place of every input, and text linked to what are numbers now."""

import copy
import json
from pathlib import Path

import pytest

from devtools.graph import to_prompt
from devtools.pages import load
from tests.pages import queued

SNAPSHOTS = Path(__file__).parent / "snapshots"
ORDER = SNAPSHOTS / "widget_order.json"
# Saved when numbers that may be auto were texts. Its nodes lack the inputs that came later.
TEXTS_LINKED = SNAPSHOTS / "texts_linked.json"
EXAMPLES = SNAPSHOTS / "examples.jsonl"


def input_order(entry: dict) -> list[str]:
    """A node's inputs as the page goes through them: the values of its widgets are saved in this order, without
    their names. What each option of a dynamic choice brings comes after it, option by option."""
    found = []
    for group in ("required", "optional"):
        for name in entry["input_order"].get(group, []):
            found.append(name)
            kind, *more = entry["input"][group][name]
            for option in more[0]["options"] if kind == "COMFY_DYNAMICCOMBO_V3" else ():
                found += [f"{name}={option['key']}.{own}" for part in option["inputs"].values() for own in part]
    return found


def misplaced(recorded: dict, seen: dict) -> list[str]:
    """Nodes that are gone, and those whose first inputs, or an option's first, are no longer the recorded ones in their
    order."""
    return [
        name
        for name, order in recorded.items()
        if any(_parted(seen.get(name, [])).get(at, [])[: len(own)] != own for at, own in _parted(order).items())
    ]


def _parted(order: list[str]) -> dict[str, list[str]]:
    """A node's own inputs, by "", and those of each option."""
    parts: dict[str, list[str]] = {"": []}
    for name in order:
        parts.setdefault(name.rpartition(".")[0], []).append(name)
    return parts


@pytest.mark.server
def test_new_inputs_come_after_all_others(server):
    """Where some are new at the end, this test writes the longer record and fails once. No other change is recorded:
    it would give the values of saved workflows to other widgets."""
    info = server.client.object_info()
    seen = {name: input_order(entry) for name, entry in sorted(info.items()) if name.startswith("MACE_")}
    recorded = json.loads(ORDER.read_text(encoding="utf-8"))
    assert not misplaced(recorded, seen), "saved workflows would load with other values: new inputs go last"
    if seen != recorded:
        ORDER.write_text(json.dumps(seen, indent=1) + "\n", encoding="utf-8")
        pytest.fail("inputs were added at the end; they are recorded now: look them over, commit and run again")


def test_a_changed_order_is_no_new_input():
    recorded = json.loads(ORDER.read_text(encoding="utf-8"))
    for name, order in recorded.items():
        assert misplaced(recorded, {**recorded, name: [*order, "newest"]}) == []
        for at, own in _parted(order).items():
            others = [name for name in order if name not in own]
            newest = f"{at}.newest".lstrip(".")
            changes = [[newest, *own], own[1:], [*own[:-1], newest, own[-1]], own[:-2] + own[:-3:-1]]
            assert misplaced(recorded, {**recorded, name: [*others, *own, newest]}) == []
            for changed in changes[: 4 if len(own) > 1 else 3]:
                assert misplaced(recorded, {**recorded, name: [*others, *changed]}) == [name]
        assert misplaced(recorded, {key: value for key, value in recorded.items() if key != name}) == [name]


@pytest.mark.server
def test_texts_linked_to_numbers_still_run(server):
    """A STRING linked to lambda1, mu and the training steps: valid, and what it says is taken."""
    workflow = json.loads(TEXTS_LINKED.read_text(encoding="utf-8"))
    result = server.client.queue(to_prompt(workflow, server.client.object_info()))
    refined, trained = (result.outputs[key]["text"][0] for key in ("5", "8"))
    assert "lambda1 0" in refined and "mu 10" in refined
    assert "3 steps" in trained
    assert result.outputs["10"]["checkpoints"]


@pytest.mark.server
@pytest.mark.parametrize("node, name", [(5, "lambda1"), (5, "mu"), (8, "steps")])
def test_what_a_linked_text_says_is_read_when_the_node_runs(server, node, name):
    from devtools.client import ExecutionError

    workflow = json.loads(TEXTS_LINKED.read_text(encoding="utf-8"))
    prompt = to_prompt(workflow, server.client.object_info())
    origin, _ = prompt[str(node)]["inputs"][name]
    prompt[origin]["inputs"]["value"] = "much"
    with pytest.raises(ExecutionError, match=f"{name}.*much"):
        server.client.queue(prompt)


@pytest.mark.browser
def test_the_page_keeps_texts_linked_to_numbers(kept_page, server):
    workflow = json.loads(TEXTS_LINKED.read_text(encoding="utf-8"))
    load(kept_page, copy.deepcopy(workflow))
    linked = {
        (key, name): node["inputs"].get(name)
        for key, node in queued(kept_page).items()
        for name in ("lambda1", "mu", "steps")
        if key in ("5", "8") and name in node["inputs"]
    }
    assert linked == {("5", "lambda1"): ["21", 0], ("5", "mu"): ["22", 0], ("8", "steps"): ["23", 0]}


@pytest.mark.browser
def test_the_example_workflows_of_before_load_with_their_values(kept_page):
    """Copies of the example workflows as they were once, each with the prompt that the page made of it then, without
    the checkpoint where the workflow names none: nodes may have got further inputs since, and lost or changed none."""
    for line in EXAMPLES.read_text(encoding="utf-8").splitlines():
        frozen = json.loads(line)
        load(kept_page, frozen["workflow"])
        now = queued(kept_page)
        assert set(now) == set(frozen["prompt"]), frozen["name"]
        for key, (kind, inputs) in frozen["prompt"].items():
            known = {name: value for name, value in now[key]["inputs"].items() if name in inputs}
            assert (now[key]["class_type"], known) == (kind, inputs), frozen["name"]
