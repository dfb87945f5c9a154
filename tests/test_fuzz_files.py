"""Two thousand seeded mutations of every format: each is read or refused in words; nothing else is raised."""

import json
import random
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mace.formats.lora_layouts import to_peft
from mace.formats.lora_reading import read
from mace.formats.lora_set import LoraSet, LoraSetError
from mace.formats.lora_set_file import changed_prompts, concept_metadata, concept_of, set_from_file, set_to_file
from mace.formats.prior_file import prior_from_file, prior_to_file
from mace.formats.records import SOME_NAMES, RecordError, read_adapter, read_record
from mace.method.prior import Prior, PriorError, PriorTexts
from mace.presets import presets
from mace.presets.presets import PresetError, read_preset
from tests.lora_cases import FOUR, sd1_lora
from tests.test_lora_set import a_set

MUTATIONS = 2000
# As JSON: what a value may become.
VALUES = ["null", "true", "-1", "0", "1.5", "7", "1" + "0" * 400, "9" * 5000, "NaN", "Infinity", "-1e999", '""', '"x"']
VALUES += ['"[1, 2]"', "[]", "{}", "[1]", "[[1]]", '{"a": 1}', '["a", 2]', '"\\ud800"', '"\\ue000"', '"{}"', "1e308"]
VALUES += ["[" * 1000 + "]" * 1000, '{"a":' * 300 + "1" + "}" * 300, "[" * 40, "01", "'x'", "", '"dog"', '"\\u0000"']
TOKENS = re.compile(r'"(?:[^"\\]|\\.)*"|-?[\d.]+(?:e-?\d+)?|true|false|null|[\[\]{}:,]')
KINDS = [
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.int64,
    torch.bool,
    torch.complex64,
]


def broken_json(rng: random.Random, text: str) -> str:
    """JSON with a value, a key or a sign changed, taken out, doubled or cut off."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        tokens = list(TOKENS.finditer(text))
        if not tokens:
            return rng.choice(VALUES)
        token = rng.choice(tokens)
        how = rng.random()
        if how < 0.6:
            text = text[: token.start()] + rng.choice(VALUES) + text[token.end() :]
        elif how < 0.8:
            text = text[: token.start()] + text[token.end() :]
        elif how < 0.9:
            text = text[: token.end()] + token[0] + text[token.end() :]
        else:
            text = text[: token.start()]
    return text


def broken_tensor(rng: random.Random, tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of another dtype or shape, or with a value that is not finite."""
    how = rng.random()
    if how < 0.4:
        return tensor.to(rng.choice(KINDS))
    if how < 0.6 and tensor.numel() and tensor.is_floating_point():
        changed = tensor.clone()
        changed.view(-1)[rng.randrange(tensor.numel())] = rng.choice((float("nan"), float("inf"), 1e30))
        return changed
    shapes = (tensor.flatten(), tensor[None], tensor[:0], tensor[:-1], tensor.new_zeros(()), tensor.new_zeros(3, 3, 3))
    return rng.choice(shapes)


def broken_file(rng: random.Random, tensors: dict, metadata: dict) -> tuple[dict, dict]:
    """A file's parts with one or more of them damaged, missing or under another's name."""
    tensors, metadata = dict(tensors), dict(metadata)
    for _ in range(rng.choice((1, 1, 2))):
        if rng.random() < 0.7 and metadata:
            name = rng.choice(sorted(metadata))
            metadata[name] = broken_json(rng, metadata[name])
            if rng.random() < 0.1:
                del metadata[name]
        elif tensors:
            name = rng.choice(sorted(tensors))
            tensors[name] = broken_tensor(rng, tensors[name])
            if rng.random() < 0.2:
                tensors[rng.choice(sorted(tensors))] = tensors.pop(name)
    return tensors, metadata


def count(mutate, parse, errors, told: str) -> tuple[int, int]:
    """(read, refused) of MUTATIONS of what `mutate` makes. errors: what `parse` may raise, in words of `told`."""
    fine = 0
    for seed in range(MUTATIONS):
        made = mutate(random.Random(seed))
        try:
            parse(made)
            fine += 1
        except errors as error:
            assert re.search(told, str(error), re.DOTALL), error
            # The words can be sent and written whatever stood in the file.
            str(error).encode()
            assert len(str(error)) < 1000
    return fine, MUTATIONS - fine


def test_sets():
    parts = set_to_file(a_set(), True)

    def parse(made):
        found = set_from_file(*made)
        assert isinstance(found, LoraSet)
        set_to_file(found, True)
        changed_prompts(made[1])

    fine, refused = count(lambda rng: broken_file(rng, *parts), parse, LoraSetError, "damaged: |no set|another version")
    assert refused > MUTATIONS / 2 and fine > 20


def test_priors():
    prior = a_set().recipe.prior
    texts = PriorTexts(tuple(f"a {i} and a cat" for i in range(prior.captions)), (("a ship",),))
    parts = prior_to_file(replace(prior, texts=texts))

    def parse(made):
        found = prior_from_file(*made)
        assert isinstance(found, Prior)
        found.general_moment(), found.preserve_moment(), found.width, prior_to_file(found)

    fine, refused = count(lambda rng: broken_file(rng, *parts), parse, PriorError, "is damaged: |not a prior")
    assert refused > MUTATIONS / 2 and fine > 20


def test_presets(tmp_path):
    plain = (Path(presets.__file__).parent / "mace_demo.json").read_text(encoding="utf-8")
    path = tmp_path / "mine.json"

    def parse(text):
        path.write_text(text, encoding="utf-8")
        name, preset = read_preset(path)
        preset.lora("style"), preset.lora("object")
        for weights in (preset.refine, preset.fuse):
            [weights(count) for count in (1, 7, 3000)] if weights else None

    fine, refused = count(
        lambda rng: broken_json(rng, plain), parse, PresetError, "^the preset mine.json cannot be read: "
    )
    assert refused > MUTATIONS / 2 and fine > 20


def test_adapters():
    tensors, config = to_peft(sd1_lora(), FOUR)
    name = next(iter(config["target_modules"]))
    config["alpha_pattern"] = {name: 2.5}
    plain = json.dumps(config)

    def parse(text):
        read(tensors, FOUR, read_adapter(text, "its JSON"))

    fine, refused = count(
        lambda rng: broken_json(rng, plain), parse, (RecordError, ValueError), "^its JSON|adapter_config"
    )
    assert refused > MUTATIONS / 10 and fine > 20


def test_concepts_of_other_files():
    (metadata,) = (concept_metadata(a_set().loras[0]),)
    name, plain = next(iter(metadata.items()))
    found = [concept_of({name: broken_json(random.Random(seed), plain)}) for seed in range(MUTATIONS)]
    assert sum(concept is None for concept in found) > MUTATIONS / 2
    for concept in filter(None, found):
        assert all("{}" in prompt for prompt in concept.prompts) and "".join(concept.phrases).encode()


def test_lists_of_names():
    plain = json.dumps(["dog", "cat", "hot dog"])
    fine, refused = count(
        lambda rng: broken_json(rng, plain),
        lambda text: read_record(SOME_NAMES, text, "concepts"),
        RecordError,
        "^concepts",
    )
    assert refused > MUTATIONS / 2 and fine > 20


@pytest.mark.parametrize("kind", ["set", "prior"])
def test_bytes_of_the_header(tmp_path, kind):
    made = a_set()
    tensors, metadata = set_to_file(made, True) if kind == "set" else prior_to_file(made.recipe.prior)
    parse, error = (set_from_file, LoraSetError) if kind == "set" else (prior_from_file, PriorError)
    save_file(tensors, tmp_path / "whole.safetensors", metadata)
    whole = (tmp_path / "whole.safetensors").read_bytes()
    size = 8 + int.from_bytes(whole[:8], "little")

    def mutate(rng):
        if rng.random() < 0.5:
            header = broken_json(rng, whole[8:size].decode()).encode(errors="surrogatepass")
            return len(header).to_bytes(8, "little") + header + whole[size:]
        data = bytearray(whole)
        for _ in range(rng.choice((1, 1, 3))):
            # Letters for the most part: what is no UTF-8 is refused at once.
            data[rng.randrange(size)] = rng.choice((rng.randrange(256), *b'"[]{}0123456789,:xF'))
        return bytes(data[: rng.randrange(len(data))]) if rng.random() < 0.1 else bytes(data)

    def load(data):
        path = tmp_path / "damaged.safetensors"
        path.write_bytes(data)
        with safe_open(path, framework="pt") as opened:
            parse({name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata() or {})

    told = "deserializing|damaged: |no set|not a prior|another version"
    fine, refused = count(mutate, load, (SafetensorError, error), told)
    assert refused > MUTATIONS / 2
