"""The file of a set of erasure LoRAs: exact round trips, and what is refused."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from mace.concepts import concept as concepts
from mace.concepts.concept import Concept
from mace.formats.lora_layouts import SD2_V, to_comfyui, to_peft
from mace.formats.lora_set import ErasureLora, LoraSet, LoraSetError, Recipe, join
from mace.formats.lora_set_file import (
    CONCEPT_KEY,
    FORMAT,
    changed_prompts,
    concept_metadata,
    concept_of,
    set_from_file,
    set_to_file,
)
from mace.method.moments import concept_moments
from mace.method.prior import make_prior
from mace.method.refine import RefineWeights
from mace.method.tokens import Pairing
from tests.lora_cases import FOUR, key_of, lora_for, seeded

WIDTH = 8
SHAPES = {key_of(b, p): (6, WIDTH) for b in ("output_blocks.10.1", "input_blocks.1.1") for p in ("to_v", "to_k")}
DOG = Concept("dog", "sky", "object", ("hound", "H\u00fcndchen"), ('a {} in "quotes"',))
MONET = Concept("Claude Monet", "art", "style")


def moments_of(seed):
    e = torch.randn(2, 5, WIDTH, generator=seeded(seed))
    pairing = Pairing((1, 2), (2, 3), (4,))
    return concept_moments([(e, 2 * e, [pairing, pairing])], WIDTH, torch.device("cpu"))


def moment(seed):
    e = torch.randn(20, WIDTH, generator=seeded(seed), dtype=torch.float64)
    return e.T @ e


def a_set():
    fingerprint = torch.randn(3, 12, WIDTH, generator=seeded(7))
    prior = make_prior(moment(1), 20, moment(2), ("ship",), fingerprint, "built-in, seed 0", ("dog",))
    recipe = Recipe(
        RefineWeights(1e-4, 0.1, 1 / 3),
        0.7,
        "keys",
        {"lambda1": "auto", "mu": "0.333"},
        fingerprint,
        -2,
        "ab" * 32,
        "built-in, seed 0",
        prior,
    )
    settings = {"rank": 2, "learning_rate": 1e-5 / 3, "loss": "paper", "save_memory": True}
    first = ErasureLora(
        DOG, lora_for(SHAPES), torch.rand(50, generator=seeded(3)), settings, moments_of(1), refined_on="ab" * 32
    )
    second = ErasureLora(MONET, lora_for(SHAPES, seed=1), torch.empty(0))
    return LoraSet((first, second), recipe, (2, 2, 2, 2), SD2_V)


def through_a_file(path, tensors, metadata):
    """What a reader of the file gets; safetensors takes only tensors that are contiguous and share nothing."""
    save_file(tensors, path, metadata=metadata)
    with safe_open(path, framework="pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata()


def assert_equal(found, expected):
    """Equal all the way down, tensors to the bit, and in the same order."""
    if isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype and torch.equal(found, expected)
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for name in expected:
            assert_equal(found[name], expected[name])
    elif isinstance(expected, tuple):
        assert type(found) is tuple and len(found) == len(expected)
        for a, b in zip(found, expected, strict=True):
            assert_equal(a, b)
    elif hasattr(expected, "__dataclass_fields__"):
        assert type(found) is type(expected)
        for name in expected.__dataclass_fields__:
            assert_equal(getattr(found, name), getattr(expected, name))
    else:
        assert type(found) is type(expected) and found == expected


def test_round_trip_with_moments(tmp_path):
    made = a_set()
    tensors, metadata = set_to_file(made, True)
    assert all(isinstance(value, str) for value in metadata.values()) and metadata["format"] == FORMAT
    assert_equal(set_from_file(*through_a_file(tmp_path / "x.safetensors", tensors, metadata)), made)


def test_round_trip_without_moments(tmp_path):
    made = a_set()
    tensors, metadata = set_to_file(made, False)
    loras = tuple(replace(erasure, moments=None) for erasure in made.loras)
    expected = replace(made, loras=loras, recipe=replace(made.recipe, prior=None))
    assert_equal(set_from_file(*through_a_file(tmp_path / "x.safetensors", tensors, metadata)), expected)
    assert not [name for name in tensors if name.endswith(("cross", "paired", "total")) or name.startswith("prior.")]


def test_round_trip_of_imported_loras(tmp_path):
    made = LoraSet((a_set().loras[1],), None, (2, 2, 2))
    assert_equal(set_from_file(*through_a_file(tmp_path / "x.safetensors", *set_to_file(made, True))), made)


def test_what_is_written_holds_no_gradient_and_odd_strides():
    up = torch.randn(2, 6, requires_grad=True)
    lora = {key_of("middle_block.1"): (up.mT, torch.randn(2, WIDTH))}
    tensors, _ = set_to_file(LoraSet((ErasureLora(DOG, lora, torch.empty(0)),), None, (2,)), False)
    assert all(t.is_contiguous() and not t.requires_grad for t in tensors.values())


def test_changed_prompts_are_named_and_no_error(monkeypatch):
    tensors, metadata = set_to_file(a_set(), True)
    assert changed_prompts(metadata) == ()
    monkeypatch.setitem(concepts.TEMPLATES, "style", ("a new prompt with {}",))
    assert changed_prompts(metadata) == ("Claude Monet",)
    assert set_from_file(tensors, metadata).concepts == (DOG, MONET)


def test_every_prompt_is_in_the_file():
    entries = json.loads(set_to_file(a_set(), False)[1]["loras"])
    assert [entry["prompts"] for entry in entries] == [list(DOG.prompts), list(MONET.prompts)]
    assert DOG.templates[0] in entries[0]["prompts"]


# Another kind of file


def test_foreign_files_are_told_apart():
    lora = a_set().loras[0].lora
    with pytest.raises(LoraSetError, match="no set of erasure LoRAs; choose one that Save Erasure LoRAs"):
        set_from_file({"a": torch.zeros(1)}, {})
    with pytest.raises(LoraSetError, match="no set of erasure LoRAs"):
        set_from_file({}, {"format": "mace-prior-1"})
    for layout, tensors in (("comfyui", to_comfyui(lora)), ("peft", to_peft(lora, FOUR)[0])):
        with pytest.raises(LoraSetError, match=f"one LoRA in {layout}'s layout.*Import LoRA"):
            set_from_file(tensors, {"format": "pt"})
    with pytest.raises(LoraSetError, match="another version of the pack .mace-erasure-loras-2.; update"):
        set_from_file({}, {"format": "mace-erasure-loras-2"})


# Other programs' files, and joining


def test_a_loras_metadata_names_its_concept():
    first, second = a_set().loras
    assert concept_of(concept_metadata(first)) == DOG and concept_of(concept_metadata(second)) == MONET
    assert concept_metadata(first)["mace.refined_on"] == "ab" * 32 and len(concept_metadata(second)) == 1
    for damaged in ({}, {CONCEPT_KEY: "{"}, {CONCEPT_KEY: "[]"}, {CONCEPT_KEY: '{"target": "x"}'}):
        assert concept_of(damaged) is None


def test_joined_in_order():
    made = a_set()
    one, two = (replace(made, loras=(erasure,)) for erasure in made.loras)
    joined = join(replace(one, recipe=None, base=None), two)
    assert joined.concepts == (DOG, MONET) and joined.recipe is made.recipe and joined.base is SD2_V
    with pytest.raises(LoraSetError, match="'dog' has an erasure LoRA in both"):
        join(made, one)
    with pytest.raises(LoraSetError, match="different models"):
        join(one, replace(two, blocks=(2, 2, 2)))
