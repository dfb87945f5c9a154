"""A set of erasure LoRAs on the demo model, and the nodes that save and read them, for their tests."""

from pathlib import Path

import torch

from tests.lora_cases import lora_for, seeded
from tests.test_refine_node import concepts, refine

SET, COMFYUI, KOHYA, PEFT = "set (MACE)", "ComfyUI", "kohya (A1111, Forge)", "PEFT"


def shapes_of(host, model):
    """(d_out, d) by the key of each cross-attention projection."""
    state = model.model.state_dict()
    return {key: tuple(state[key].shape) for key in host.module("nodes.host.model.unet").cross_attention_keys(model)}


def make_set(host, demo):
    """A set of two concepts with random LoRAs, real moments and a real recipe."""
    model, clip, _ = demo
    # As the host's main does at its start.
    host.folder_paths.add_model_folder_path("loras", str(host.base / "output/loras"))
    chosen = concepts(host, "dog | hound -> sky\nhot air balloon!")
    result = refine(host, model, clip, chosen, mu="10")[1]
    sets, family = host.module("mace.formats.lora_set"), host.module("nodes.host.model.family")
    loras = tuple(
        sets.ErasureLora(
            concept,
            {k: (0.1 * up, down) for k, (up, down) in lora_for(shapes_of(host, model), ranks=(1, 2), seed=i).items()},
            torch.rand(5, generator=seeded(i)),
            {"rank": 2, "learning_rate": 1e-5},
            moments,
            "c0ffee",
        )
        for i, (concept, moments) in enumerate(zip(chosen, result.moments, strict=True))
    )
    return sets.LoraSet(loras, sets.recipe_of(result, "c0ffee"), family.res_blocks(model), family.family(model))


def save(host, loras, prefix, format=SET, moments=False):
    """(paths, other lines) that the node reports."""
    out = host.run("MACE_SaveLoras", loras=loras, filename_prefix=prefix, format=format, moments=moments)
    lines = out.ui.as_dict()["text"][0].split("\n")
    paths = [Path(line) for line in lines if line.startswith(str(host.base))]
    assert paths and all(path.exists() for path in paths)
    return paths, [line for line in lines if not line.startswith(str(host.base))]


def load(host, path, **more):
    name = Path(path).relative_to(host.base / "output/mace_loras").as_posix()
    out = host.run("MACE_LoadLoras", loras_name=name, **more)
    return out[0], out.ui.as_dict()["text"][0]


def imported(host, model, path, **inputs):
    name = Path(path).relative_to(host.base / "output/loras").as_posix()
    out = host.run("MACE_ImportLora", model=model, lora_name=name, **inputs)
    return out[0], out.ui.as_dict()["text"][0]


def assert_same_lora(found, expected):
    assert found.keys() == expected.keys()
    for key, (up, down) in expected.items():
        assert torch.equal(found[key][0], up) and torch.equal(found[key][1], down), key
