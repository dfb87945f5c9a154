"""Damaged files of erasure LoRAs: each kind of damage is named."""

import json
from dataclasses import replace

import pytest
import torch

from mace.formats.lora_set import LoraSetError
from mace.formats.lora_set_file import set_from_file, set_to_file
from tests.lora_cases import key_of
from tests.test_lora_set import WIDTH, a_set


@pytest.mark.parametrize("name", ["format", "loras", "blocks", "base", "recipe", "prior.captions"])
def test_missing_metadata(name):
    tensors, metadata = set_to_file(a_set(), True)
    del metadata[name]
    message = "no set of erasure LoRAs" if name == "format" else f"damaged.*{name.removeprefix('prior.')}.*save the set"
    with pytest.raises(LoraSetError, match=message):
        set_from_file(tensors, metadata)


def test_every_tensor_is_asked_for():
    tensors, metadata = set_to_file(a_set(), True)
    for name in tensors:
        rest = {other: t for other, t in tensors.items() if other != name}
        if name in ("prior.general.mean", "prior.preserve.sum"):  # a prior may lack either
            continue
        with pytest.raises(LoraSetError, match=f"damaged.*{name.removeprefix('prior.').replace('.', '[.]')}"):
            set_from_file(rest, metadata)


@pytest.mark.parametrize(
    "end", ["up", "down", "losses", "cross", "paired", "total", "fingerprint", "prior.general.mean"]
)
def test_values_that_are_not_finite(end):
    tensors, metadata = set_to_file(a_set(), True)
    name = next(n for n in tensors if n == end or n.split(".")[1:2] == [end])
    tensors[name] = tensors[name].clone()
    tensors[name].view(-1)[-1] = torch.nan
    message = "its prior cannot be read.*general.mean" if name.startswith("prior") else f"{name} holds .* not finite"
    with pytest.raises(LoraSetError, match=message):
        set_from_file(tensors, metadata)


@pytest.mark.parametrize(
    "name, value, message",
    [
        (f"0.up.{key_of('input_blocks.1.1')}", torch.zeros(6, 9), r"'dog'.*\[6, 9\] times .* is no LoRA"),
        (f"0.up.{key_of('input_blocks.1.1')}", torch.zeros(6), r"float32 \[6\], not torch.float32 of 2 dim"),
        (f"0.up.{key_of('input_blocks.1.1')}", torch.zeros(6, 2).half(), "float16.*not torch.float32"),
        ("0.losses", torch.zeros(2, 2), "0.losses is"),
        ("0.cross", torch.zeros(WIDTH, WIDTH), "0.cross is torch.float32.*not torch.float64"),
        ("0.cross", torch.zeros(WIDTH, WIDTH - 1).double(), "moments of 'dog' do not fit each other"),
        ("0.total", torch.zeros(3).double(), "moments of 'dog' do not fit each other"),
        ("0.total", torch.zeros(5).double(), "packed symmetric"),
        ("fingerprint", torch.zeros(12, WIDTH), "fingerprint is"),
        ("fingerprint", torch.zeros(3, 12, 9), "prior is of another text encoder"),
    ],
)
def test_wrong_shapes(name, value, message):
    tensors, metadata = set_to_file(a_set(), True)
    assert name in tensors
    with pytest.raises(LoraSetError, match=f"damaged: .*{message}"):
        set_from_file(tensors | {name: value}, metadata)


def test_moments_and_loras_of_another_width():
    made = a_set()
    made = replace(made, recipe=replace(made.recipe, prior=None))
    tensors, metadata = set_to_file(made, True)
    wide = {"0.cross": torch.zeros(9, 9), "0.paired": torch.zeros(45), "0.total": torch.zeros(45)}
    with pytest.raises(LoraSetError, match="fingerprint is 8 wide, the moments of 'dog' 9"):
        set_from_file(tensors | {name: t.double() for name, t in wide.items()}, metadata)
    with pytest.raises(LoraSetError, match="fingerprint is 9 wide, the LoRA of 'dog' 8"):
        set_from_file(tensors | {"fingerprint": torch.zeros(3, 12, 9)}, metadata)
    down = f"1.down.{key_of('input_blocks.1.1', 'to_v')}"
    with pytest.raises(LoraSetError, match=r"'Claude Monet' reads embeddings of several widths: \[8, 9\]"):
        set_from_file(tensors | {down: torch.zeros(len(tensors[down]), 9)}, metadata)


@pytest.mark.parametrize(
    "part, value, message",
    [
        ("concept.type", "animal", "'dog' has the unknown type 'animal' .known: object, celebrity"),
        ("concept.target", "", "is no concept"),
        ("concept.mapping", 3, "is no concept"),
        ("concept.aliases", "hound", "aliases is 'hound', not a list of texts"),
        ("concept.aliases", ["claude  MONET"], "'claude monet' is a phrase of both 'dog' and 'Claude Monet'"),
        ("concept.templates", [1], "templates is"),
        ("prompts", None, "prompts is None"),
        ("projections", [], "'dog' has no LoRA"),
        ("projections", ["x"], "0.up.x is missing"),
        ("settings", [], r"settings is \[\], not of type dict"),
        ("settings", {"rank": [1]}, "the setting 'rank' of 'dog'"),
        ("refined_on", None, "refined_on is None"),
        ("moments", {"pairs": 1.5, "prompts": 1}, "1.5 pairs"),
        ("moments", {"pairs": 1, "prompts": 0}, "in 0 prompts"),
        ("moments", {}, "pairs is missing"),
    ],
)
def test_wrong_entries_of_a_concept(part, value, message):
    tensors, metadata = set_to_file(a_set(), True)
    entries = json.loads(metadata["loras"])
    *path, last = part.split(".")
    (entries[0][path[0]] if path else entries[0])[last] = value
    with pytest.raises(LoraSetError, match=f"damaged: .*{message}"):
        set_from_file(tensors, metadata | {"loras": json.dumps(entries)})


@pytest.mark.parametrize(
    "part, value, message",
    [
        ("weights", {"lambda1": "x"}, "the refinement's lambda1 is 'x'"),
        ("weights", {"lambda9": 1}, "lambda9"),
        ("weights", {"metric": "far"}, "the metric is alike or reading"),
        ("weights", {"mu": -1}, "the refinement's mu is -1"),
        ("strength", float("inf"), "the refinement's strength is inf"),
        ("strength", True, "the refinement's strength is True"),
        ("projections", "queries", "is of 'queries'"),
        ("clip_layer", 1.5, "clip layer is 1.5"),
        ("settings", {"mu": 1}, "mu is 1, not of type str"),
        ("digest", None, "digest is None"),
        ("prior_source", 4, "prior_source is 4"),
    ],
)
def test_wrong_entries_of_the_recipe(part, value, message):
    tensors, metadata = set_to_file(a_set(), True)
    recipe = json.dumps(json.loads(metadata["recipe"]) | {part: value})
    with pytest.raises(LoraSetError, match=f"damaged: .*{message}"):
        set_from_file(tensors, metadata | {"recipe": recipe})


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("loras", "[]", "it holds no concept"),
        ("loras", "[", "damaged"),
        ("loras", '["x"]', "damaged"),
        ("loras", "7", "damaged"),
        ("blocks", "[]", "no numbers of blocks"),
        ("blocks", "[2, true]", "no numbers of blocks"),
        ("blocks", "2", "damaged"),
        ("base", "[1]", "base is"),
        ("base", '{"architecture": 1, "version": "", "resolution": ""}', "the model's architecture is 1"),
        ("base", '{"name": "x"}', "damaged"),
        ("prior.format", "mace-prior-9", "its prior cannot be read"),
    ],
)
def test_wrong_metadata(name, value, message):
    tensors, metadata = set_to_file(a_set(), True)
    with pytest.raises(LoraSetError, match=message):
        set_from_file(tensors, metadata | {name: value})
