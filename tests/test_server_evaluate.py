"""Evaluate Erasure through the real server, as its example workflow has it."""

import json

import pytest

from devtools.client import PromptError
from devtools.graph import to_prompt
from tests import graphs

pytestmark = pytest.mark.server

NODE, TITLE = "MACE_EvaluateErasure", "Evaluate Erasure (MACE)"


@pytest.fixture
def example(server):
    """The shipped workflow as a prompt, and the id of its node."""
    prompt = to_prompt(graphs.workflow("evaluate"), server.client.object_info())
    (node,) = (key for key, entry in prompt.items() if entry["class_type"] == NODE)
    return prompt, node


@pytest.mark.long
def test_the_example_measures_the_erasure(server, example):
    """Dog and ship go, the others stay; queueing again runs nothing, and one more seed draws that seed alone."""
    prompt, node = example
    prompt["90"] = graphs.node("PreviewAny", source=(node, 1))
    prompt[node]["inputs"].update(steps=6, seeds=1)
    steps = []
    first = server.client.queue(prompt, lambda title, *step: steps.append(step) if title == TITLE else None)
    results = json.loads(first.outputs["90"]["text"][0])
    top = {name: row["erased"]["value"] for name, row in results["top-1"].items()}
    base = {name: row["base"]["value"] for name, row in results["top-1"].items()}
    assert base["Acc_e"] >= 0.9 and base["Acc_s"] >= 0.9 and base["Acc_g"] >= 0.8
    assert top["Acc_e"] <= 0.2 and top["Acc_s"] >= 0.75 and top["Acc_g"] < base["Acc_g"] and top["H"] > 0.5
    assert results["pictures"] == {"of each model": 12, "drawn now": 24}
    assert "Acc_e" in first.outputs[node]["text"][0]
    (sheet,) = (out["images"] for key, out in first.outputs.items() if prompt[key]["class_type"] == "PreviewImage")
    values = [value for value, _ in steps if value is not None]
    assert len(sheet) == 1 and values == sorted(values) and steps[-1] == (24 * 6, 24 * 6)
    assert not set(server.client.queue(prompt).executed) & set(prompt)
    prompt[node]["inputs"]["seeds"] += 1
    again = json.loads(server.client.queue(prompt).outputs["90"]["text"][0])
    assert again["pictures"] == {"of each model": 24, "drawn now": 24}


def test_a_missing_file_stands_on_the_node(server, example):
    prompt, node = example
    prompt[node]["inputs"].update(judge="CLIP", judge_file="none")
    with pytest.raises(PromptError, match="needs one: put a CLIP model's folder"):
        server.client.queue(prompt)
