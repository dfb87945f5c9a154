"""Importing LoRAs of other programs in the real host."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.lora_node_cases import COMFYUI, KOHYA, PEFT, assert_same_lora, imported, make_set, save
from tests.test_refine_node import concepts

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def made(comfy_host, demo):
    return make_set(comfy_host, demo)


@pytest.mark.parametrize("format", [COMFYUI, KOHYA, PEFT])
def test_imported_from_every_layout(comfy_host, demo, made, format):
    paths, _ = save(comfy_host, made, f"loras/import_{format[:3]}", format)
    files = [path / "adapter_model.safetensors" if path.is_dir() else path for path in paths]
    assert files[0].relative_to(comfy_host.base / "output/loras").as_posix() in [
        name.replace("\\", "/") for name in comfy_host.folder_paths.get_filename_list("loras")
    ]
    first, report = imported(comfy_host, demo[0], files[0])
    assert first.recipe is None and first.blocks == made.blocks and first.base == made.base
    assert first.concepts == made.concepts[:1] and first.loras[0].refined_on == "c0ffee"
    assert_same_lora(first.loras[0].lora, made.loras[0].lora)
    assert f"dog: {format.split()[0]} layout, 8 matrices, rank 1, 2" in report
    (cat,) = concepts(comfy_host, "cat -> sky")
    both, report = imported(comfy_host, demo[0], files[1], concepts=(cat,), more=first)
    assert [concept.target for concept in both.concepts] == ["dog", "cat"]
    assert "the file says that it erases 'hot air balloon!'" in report and "with those before: 2 concepts" in report


def test_pefts_scale_is_read_and_its_absence_said(comfy_host, demo, made):
    folder = save(comfy_host, made, "loras/scaled", PEFT)[0][0]
    file, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    changed = json.loads(config.read_text()) | {"r": 1, "lora_alpha": 3}
    ranks = {name: 2 for name, t in load_file(file).items() if name.endswith("lora_A.weight") and len(t) == 2}
    patterns = {name.removeprefix("base_model.model.").removesuffix(".lora_A.weight"): 2 for name in ranks}
    config.write_text(json.dumps(changed | {"rank_pattern": patterns, "alpha_pattern": dict.fromkeys(patterns, 6)}))
    node = comfy_host.node_classes["MACE_ImportLora"]
    stamp = node.fingerprint_inputs(lora_name="scaled_dog_00001_/adapter_model.safetensors")
    found, _ = imported(comfy_host, demo[0], file)
    for key, (up, _) in made.loras[0].lora.items():
        torch.testing.assert_close(found.loras[0].lora[key][0], 3 * up)
    config.unlink()
    assert node.fingerprint_inputs(lora_name="scaled_dog_00001_/adapter_model.safetensors") != stamp
    found, report = imported(comfy_host, demo[0], file)
    assert "no adapter_config.json beside the file: its scale is taken as 1" in report
    assert_same_lora(found.loras[0].lora, made.loras[0].lora)
    for broken in ("{", "[]"):
        config.write_text(broken)
        with pytest.raises(ValueError, match="adapter_config.json is damaged"):
            imported(comfy_host, demo[0], file)


def test_a_lora_needs_one_concept(comfy_host, demo, made):
    path = save(comfy_host, made, "loras/plain", COMFYUI)[0][0]
    save_file(load_file(path), path)
    with pytest.raises(ValueError, match="does not say what it erases: connect Concepts"):
        imported(comfy_host, demo[0], path)
    with pytest.raises(ValueError, match="erases one concept, and 2 are connected"):
        imported(comfy_host, demo[0], path, concepts=made.concepts)
    found, _ = imported(comfy_host, demo[0], path, concepts=made.concepts[:1])
    assert found.concepts == made.concepts[:1] and found.loras[0].refined_on == ""


def written(host, name, tensors):
    path = host.base / "output/loras" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)
    return path


def test_other_loras_are_refused(comfy_host, demo, made):
    chosen = {"concepts": made.concepts[:1]}
    key = next(iter(made.loras[0].lora)).removesuffix(".weight")
    up, down = torch.zeros(320, 2), torch.zeros(2, 768)

    def pair(name, up=up, down=down):
        return {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down}

    cases = [
        (pair(key, down=torch.zeros(2, 2048)), r"is for another model: .*attn2.*\(320, 768\) here.*\(320, 2048\)"),
        (pair(key.replace("blocks.0.", "blocks.7.")), "is for another model: this one has no .*transformer_blocks.7"),
        (pair(key.replace("attn2", "attn1")), "attn1.*only to_k and to_v of its cross-attention"),
        (pair("lora_te_text_model_encoder_layers_0_mlp_fc1"), "lora_te_text.*only to_k and to_v"),
        ({"model.weight": torch.zeros(2)}, "model.weight is no LoRA key of ComfyUI, kohya, PEFT or Diffusers"),
        ({f"{key}.lora_up.weight": up}, "the down half of this LoRA is missing"),
        (pair(key, up=torch.full((320, 2), torch.nan)), "not finite"),
    ]
    for tensors, message in cases:
        path = written(comfy_host, "other.safetensors", tensors)
        with pytest.raises(ValueError, match=f"other.safetensors.*{message}"):
            imported(comfy_host, demo[0], path, **chosen)


def test_other_files_are_refused(comfy_host, demo, made):
    folder = comfy_host.base / "output/loras"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("x.pt", "x.ckpt"):
        (folder / name).write_bytes(b"pickle")
        with pytest.raises(ValueError, match=f"{name} is not a safetensors file.*convert it to safetensors"):
            imported(comfy_host, demo[0], folder / name)
    (folder / "broken.safetensors").write_bytes(b"hello")
    with pytest.raises(ValueError, match="broken.safetensors is not a safetensors file or is damaged"):
        imported(comfy_host, demo[0], folder / "broken.safetensors")
    (path,), _ = save(comfy_host, made, "loras/a_set")
    with pytest.raises(ValueError, match="is a set of erasure LoRAs: put it in mace_loras and use Load Erasure LoRAs"):
        imported(comfy_host, demo[0], path)
