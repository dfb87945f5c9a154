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
        ("concept.type", "animal", "loras.0..concept.type is 'animal': it should be 'object', 'celebrity'"),
        ("concept.target", "", "concept.target is '': value should have at least 1"),
        ("concept.mapping", 3, "concept.mapping is 3: it should be a valid string"),
        ("concept.aliases", "hound", "aliases is 'hound': it should be a valid array"),
        ("concept.aliases", ["claude  MONET"], "'claude monet' is a phrase of both 'dog' and 'Claude Monet'"),
        ("concept.templates", [1], "templates.0. is 1"),
        ("concept.templates", ["a dog"], "templates.0. is 'a dog': 'a dog' needs {} where the phrase goes"),
        ("concept.target", "d\ud83dog", "no JSON that can be read"),
        ("concept.target", "\ue000", r"U\+E000, of private use"),
        ("concept", [], "concept is ..: it should be an object"),
        ("moments", {"pairs": 10**400, "prompts": 1}, "pairs is 1000.*: it should be less than or equal to"),
        ("prompts", None, "prompts is None"),
        ("projections", [], "projections is .*at least 1 item"),
        ("projections", ["x"], "0.up.x is missing"),
        ("settings", [], r"settings is \[\]: it should be an object"),
        ("settings", {"rank": [1]}, "settings.rank.str is .1.: it should be a valid string"),
        ("refined_on", None, "refined_on is None"),
        ("moments", {"pairs": 1.5, "prompts": 1}, "moments.pairs is 1.5"),
        ("moments", {"pairs": 1, "prompts": 0}, "moments.prompts is 0"),
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
        ("weights", {"lambda1": "x"}, "recipe.weights.lambda1 is 'x'"),
        ("weights", {"lambda9": 1}, "lambda9"),
        ("weights", {"metric": "far"}, "metric is 'far': it should be 'alike' or 'reading'"),
        ("weights", {"mu": -1}, "weights.mu is -1"),
        ("strength", float("inf"), "recipe.strength is inf"),
        ("strength", True, "recipe.strength is True"),
        ("projections", "queries", "recipe.projections is 'queries'"),
        ("clip_layer", 1.5, "clip_layer is 1.5"),
        ("settings", {"mu": 1}, "recipe.settings.mu is 1: it should be a valid string"),
        ("digest", None, "digest is None"),
        ("prior_source", 4, "prior_source is 4"),
        ("weights", {"mu": 10**400}, "weights.mu is 1000.*it should be a finite number"),
        ("weights", [1], "recipe.weights is .1.: it should be an object"),
        ("clip_layer", 10**30, "clip_layer is 1000"),
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
        ("loras", "[]", "loras is ..: tuple should have at least 1 item"),
        ("loras", "[", "damaged"),
        ("loras", '["x"]', "damaged"),
        ("loras", "7", "damaged"),
        ("blocks", "[]", "blocks is ..: tuple should have at least 1 item"),
        ("blocks", "[2, true]", "blocks.1. is True"),
        ("blocks", "2", "damaged"),
        ("base", "[1]", "base is"),
        ("base", '{"architecture": 1, "version": "", "resolution": ""}', "base.architecture is 1"),
        ("base", '{"name": "x"}', "damaged"),
        ("prior.format", "mace-prior-9", "its prior cannot be read"),
        ("loras", "[" * 5000, "loras is no JSON that can be read .recursion limit"),
        ("recipe", '{"weights": ' * 5000, "recipe is no JSON that can be read .recursion limit"),
        ("prior.preserved", '"[1, 2]"', "its prior cannot be read.*preserved is '.1, 2.': it should be a valid array"),
        ("prior.preserved", "[1, 2]", "its prior cannot be read.*preserved.0. is 1: it should be a valid string"),
        ("prior.captions", "9" * 400, "its prior cannot be read.*captions is 999.*less than or equal"),
    ],
)
def test_wrong_metadata(name, value, message):
    tensors, metadata = set_to_file(a_set(), True)
    with pytest.raises(LoraSetError, match=message):
        set_from_file(tensors, metadata | {name: value})
