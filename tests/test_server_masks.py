"""Mask Concept's back-ends through the real server, as the example workflows have them."""

import shutil

import pytest

from devtools.client import ExecutionError, PromptError
from devtools.graph import to_prompt
from tests import graphs
from tests.small_models import MAKERS

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


@pytest.fixture
def folders(server):
    """Small models where the example looks for them, for one test."""
    made = [server.base_dir / "models" / place for place in ("grounding-dino/small", "sams/small")]
    for folder, kind in zip(made, ("mm-grounding-dino", "sam2"), strict=True):
        folder.mkdir(parents=True)
        MAKERS[kind](folder)
    yield
    for folder in made:
        shutil.rmtree(folder)


def test_folders_of_transformers(server, folders):
    """Random weights find everything without a threshold, and nothing with the highest."""
    prompt, node = example(server, "masks_transformers")
    with pytest.raises(PromptError, match="gone"):
        prompt[node]["inputs"]["backend.detector"] = "gone"
        server.client.queue(prompt)
    prompt[node]["inputs"].update({"backend.detector": "small", "backend.segmenter": "small"})
    prompt[node]["inputs"].update({"backend.box_threshold": 0.0, "backend.combine": "largest"})
    result = server.client.queue(prompt)
    said = result.outputs[node]["text"][0]
    assert said.count("40 boxes in 2 images") == 2 and len(result.outputs[node]["images"]) == 4
    prompt[node]["inputs"]["backend.box_threshold"] = 1.0
    said = server.client.queue(prompt).outputs[node]["text"][0]
    assert "dog: 100% of the image, 0 boxes in 2 images" in said and "looked for dog; another phrase" in said


def test_prompts_from_before_the_other_back_ends(server):
    """One value named the back-end and nothing else was there."""
    prompt, node = example(server, "masks_boxes")
    inputs = prompt[node]["inputs"]
    prompt[node]["inputs"] = {name: inputs[name] for name in ("model", "clip", "images")} | {"backend": "whole image"}
    assert "dog: 100% of the image" in server.client.queue(prompt).outputs[node]["text"][0]
    prompt[node]["inputs"]["backend"] = "wishes"
    with pytest.raises(ExecutionError, match="backend: none of this name; choose one of attention, GroundingDINO"):
        server.client.queue(prompt)
