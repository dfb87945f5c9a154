"""Negative prompts of a list of concepts."""

import pytest
import torch

from mace.baselines.words import joined
from mace.concepts.concept import parse_concepts


def test_names_and_text_are_joined():
    chosen = parse_concepts("dog | hound -> sky\nClaude Monet -> art", "object")
    assert joined(chosen) == "dog, hound, Claude Monet"
    assert joined(chosen, " blurry,\n dark ") == "dog, hound, Claude Monet, blurry, dark"
    assert joined((), "blurry") == "blurry" and joined(()) == ""


@pytest.mark.host
def test_node_encodes_as_the_host_does(comfy_host, demo):
    clip = demo[1]
    chosen = comfy_host.run(
        "MACE_Concepts", concepts="dog -> sky\ncat -> forest", type="object", preset="none", prompt_file="none"
    )[0]
    for text, prompt in (("", "dog, cat"), ("blurry", "dog, cat, blurry")):
        ((found, _),) = comfy_host.run("MACE_BaselineNegative", clip=clip, concepts=chosen, text=text)[0]
        assert torch.equal(found, comfy_host.encode(clip, prompt)[0][0])
    with pytest.raises(ValueError, match="no text encoder"):
        comfy_host.run("MACE_BaselineNegative", clip=None, concepts=chosen)
