"""Mask Concept's back-ends through the real server, as the example workflows have them."""

import pytest

from devtools.client import ExecutionError, PromptError
from devtools.graph import to_prompt
from tests import graphs

pytestmark = pytest.mark.server


def example(server, name: str) -> tuple[dict, str]:
    """(the prompt of an example with hardly any pictures, Mask Concept's id in it)."""
    prompt = to_prompt(graphs.workflow(name), server.client.object_info())
    ids = {node["class_type"]: key for key, node in prompt.items()}
    prompt[ids["MACE_ConceptImages"]]["inputs"].update(count=2, steps=2)
    return prompt, ids["MACE_MaskConcept"]


def test_boxes_of_another_node(server):
    prompt, node = example(server, "masks_boxes")
    result = server.client.queue(prompt)
    assert "dog: 56% of the image, 2 boxes in 2 images" in result.outputs[node]["text"][0]
    assert len(result.outputs[node]["images"]) == 2


@pytest.mark.parametrize(
    "name, message",
    [
        ("masks_grounding_dino", "put groundingdino_swint_ogc.pth"),
        ("masks_sam3", "sam3.safetensors"),
    ],
)
def test_what_lacks_files_says_so(server, name, message):
    prompt, _ = example(server, name)
    with pytest.raises((ExecutionError, PromptError), match=message):
        server.client.queue(prompt)


def test_prompts_from_before_the_other_back_ends(server):
    """One value named the back-end and nothing else was there."""
    prompt, node = example(server, "masks_boxes")
    inputs = prompt[node]["inputs"]
    prompt[node]["inputs"] = {name: inputs[name] for name in ("model", "clip", "images")} | {"backend": "whole image"}
    assert "dog: 100% of the image" in server.client.queue(prompt).outputs[node]["text"][0]
    prompt[node]["inputs"]["backend"] = "wishes"
    with pytest.raises(ExecutionError, match="backend: none of this name; choose one of attention, GroundingDINO"):
        server.client.queue(prompt)
