"""Erasure LoRAs in other programs' layouts, saved by the node and used where they are for."""

import json
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tests.lora_cases import seeded
from tests.lora_node_cases import COMFYUI, KOHYA, PEFT, SET, make_set, save
from tests.test_refine_node import effective

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def made(comfy_host, demo):
    return make_set(comfy_host, demo)


def test_one_file_a_concept_never_overwritten(comfy_host, made):
    paths, lines = save(comfy_host, made, "loras/erased", COMFYUI)
    stems = ("erased_dog", "erased_hot_air_balloon")
    assert [path.name for path in paths] == [f"{stem}_00001_.safetensors" for stem in stems]
    assert lines == []
    kept = paths[0].read_bytes()
    again, _ = save(comfy_host, made, "loras/erased", KOHYA)
    assert [path.name for path in again] == [f"{stem}_00002_.safetensors" for stem in stems]
    folders, lines = save(comfy_host, made, "loras/erased", PEFT, moments=True)
    assert [path.name for path in folders] == ["erased_dog_00003_", "erased_hot_air_balloon_00003_"]
    assert sorted(path.name for path in folders[0].iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert lines == ["moments are saved in sets only; this format has no place for them"]
    assert paths[0].read_bytes() == kept
    assert not list(paths[0].parent.glob(".*"))


def test_a_place_where_the_host_does_not_look_is_said(comfy_host, made):
    assert "output/loras" in save(comfy_host, made, "elsewhere/x", KOHYA)[1][0]
    assert not save(comfy_host, made, "elsewhere/x", PEFT)[1]


@pytest.mark.parametrize("format", [COMFYUI, KOHYA])
def test_the_hosts_loader_adds_exactly_the_lora(comfy_host, demo, made, caplog, format):
    paths, _ = save(comfy_host, made, f"loras/host_{format[:3]}", format)
    for path, erasure in zip(paths, made.loras, strict=True):
        with torch.inference_mode():
            patched, _ = comfy_host.nodes.LoraLoader().load_lora(demo[0], None, path.name, 1.0, 0)
        assert set(patched.patches) == set(erasure.lora)
        for key, (up, down) in erasure.lora.items():
            delta = effective(patched, key) - effective(demo[0], key)
            torch.testing.assert_close(delta, up @ down, rtol=1e-4, atol=1e-5)
    assert not [r for r in caplog.records if "lora key not loaded" in r.getMessage()]


def test_kohyas_metadata_says_what_it_is(comfy_host, made):
    path = save(comfy_host, made, "loras/meta", KOHYA)[0][0]
    with safe_open(path, framework="pt") as opened:
        metadata = opened.metadata()
    assert metadata["ss_base_model_version"] == "sd_v1" and metadata["modelspec.title"] == "meta_dog"
    assert "trained on the refined weights W'" in metadata["modelspec.description"]
    assert "exact only on the refined model" in metadata["modelspec.description"]
    assert json.loads(metadata["mace.concept"])["aliases"] == ["hound"] and metadata["mace.refined_on"] == "c0ffee"


def test_peft_itself_loads_the_folder(comfy_host, demo, made):
    peft = pytest.importorskip("peft")
    from tests.test_lora_files_elsewhere import tree

    module = comfy_host.module("mace.formats.lora_layouts").diffusers_module
    folder, erasure = save(comfy_host, made, "loras/peft", PEFT)[0][0], made.loras[0]
    names = {module(key, made.blocks): key for key in erasure.lora}
    model = tree({name: (erasure.lora[key][0].shape[0], erasure.lora[key][1].shape[1]) for name, key in names.items()})
    x = torch.randn(2, 768, generator=seeded(), dtype=torch.float64)
    with torch.no_grad():
        before = model(x)
        loaded = peft.PeftModel.from_pretrained(model, folder, autocast_adapter_dtype=False)
        after = loaded(x)
    for name, key in names.items():
        up, down = erasure.lora[key]
        torch.testing.assert_close(after[name] - before[name], x @ (up @ down).T.double(), rtol=1e-4, atol=1e-4)


def test_names_of_any_script_and_sign(comfy_host):
    slug = comfy_host.module("nodes.host.lora_files").slug
    assert slug("Adam  Driver") == "adam_driver" and slug("../x/%year%") == "x_year"
    assert slug("\u72ac") == "\u72ac" and slug("?!") == "concept" and len(slug("word " * 40)) <= 40
    # Three bytes a sign: what is cut stays whole signs.
    assert slug("\u72ac" * 40) == "\u72ac" * 13


def test_an_empty_set_is_refused(comfy_host, made):
    with pytest.raises(ValueError, match="the set is empty"):
        save(comfy_host, replace(made, loras=()), "mace_loras/x")


@pytest.mark.parametrize("format", [SET, COMFYUI, PEFT])
def test_outside_the_output_folder(comfy_host, made, format):
    before = sorted(comfy_host.base.rglob("*"))
    with pytest.raises(ValueError, match="outside the output folder"):
        save(comfy_host, made, "../elsewhere/x", format)
    assert "outside" in comfy_host.validate("MACE_SaveLoras", filename_prefix="../x")
    assert comfy_host.validate("MACE_SaveLoras", filename_prefix="loras/x") is True
    assert "outside" in comfy_host.validate("MACE_ExportLora", filename_prefix="../x")
    assert sorted(comfy_host.base.rglob("*")) == before


@pytest.mark.parametrize("format", [SET, COMFYUI, KOHYA, PEFT])
def test_a_full_disk_leaves_nothing(comfy_host, made, format):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 13, hard))
    try:
        with pytest.raises(OSError, match="could not write to .*full_disk"):
            save(comfy_host, made, "full_disk/x", format)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert not (comfy_host.base / "output/full_disk").exists()


@pytest.mark.parametrize("format", [COMFYUI, PEFT])
def test_all_concepts_or_none(comfy_host, made, format, monkeypatch):
    """The second concept cannot be written: the first one's file goes too, older files stay."""
    older = save(comfy_host, made, f"loras/older_{format}/x", format)[0]
    node = comfy_host.module("nodes.files.save_loras")
    real = node.write_lora

    def fails(layout, prefix, *rest):
        if "balloon" in prefix:
            raise OSError("the disk is full")
        return real(layout, prefix, *rest)

    monkeypatch.setattr(node, "write_lora", fails)
    for prefix in ("loras/new/x", f"loras/older_{format}/x"):
        with pytest.raises(OSError, match="disk is full"):
            save(comfy_host, made, prefix, format)
    assert not (comfy_host.base / "output/loras/new").exists()
    assert sorted((comfy_host.base / "output/loras" / f"older_{format}").iterdir()) == sorted(older)


def test_a_folder_that_appears_meanwhile_is_not_replaced(comfy_host, made, monkeypatch):
    """Between the choice of the counter and the renaming someone else takes the name."""
    files = comfy_host.module("nodes.host.files")
    real = Path.rename

    def rename(self, target):
        if target.name == "race_dog_00001_" and not target.exists():
            target.mkdir()
            (target / "theirs").write_text("x")
        return real(self, target)

    monkeypatch.setattr(files.Path, "rename", rename)
    folder = save(comfy_host, made, "loras/race", PEFT)[0][0]
    assert folder.name == "race_dog_00002_"
    assert [path.name for path in folder.with_name("race_dog_00001_").iterdir()] == ["theirs"]
