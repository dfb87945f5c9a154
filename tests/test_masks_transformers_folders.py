"""Folders of models for transformers: as published, with files missing, damaged, of other models."""

import json
import shutil

import pytest
import torch

from tests.small_models import BOXES, DETECTORS, MAKERS, load_models, make_folders, noise, same

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def module(comfy_host):
    return comfy_host.module("nodes.host.detectors.transformers_models")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return make_folders(tmp_path_factory)


@pytest.fixture(scope="module")
def models(module, folders):
    return load_models(module, folders)


@pytest.mark.parametrize("kind", MAKERS)
def test_folders_as_published_before_transformers_5(module, folders, models, tmp_path, kind):
    """Pictures' settings in preprocessor_config.json, under the older names; a tokenizer without tokenizer.json."""
    folder = shutil.copytree(folders[kind], tmp_path / "model")
    about = json.loads((folder / "processor_config.json").read_text())["image_processor"]
    about["image_processor_type"] += "Fast" if "sam2" in kind else ""
    (folder / "preprocessor_config.json").write_text(json.dumps(about))
    (folder / "processor_config.json").unlink()
    if kind in DETECTORS:
        (folder / "tokenizer.json").unlink()
        found, expected = (
            model.detect(noise(1), "red car", 0.0, 0.25)[0] for model in (module.load_detector(folder), models[kind])
        )
        assert same(found, expected)
    else:
        found, expected = (
            model.segment(noise(1), [torch.tensor(BOXES)])[0] for model in (module.load_segmenter(folder), models[kind])
        )
        assert torch.equal(found, expected)


@pytest.mark.parametrize(
    "kind, names, message",
    [
        ("grounding-dino", ("config.json",), "lacks config.json: put all files .* into "),
        ("grounding-dino", ("model.safetensors",), "lacks model.safetensors or model.safetensors.index.json"),
        ("grounding-dino", ("tokenizer.json", "vocab.txt"), "lacks tokenizer.json or vocab.txt"),
        ("sam", ("processor_config.json",), "lacks preprocessor_config.json or processor_config.json"),
        ("sam2", ("model.safetensors",), "lacks model.safetensors"),
    ],
)
def test_a_missing_file_is_named(module, folders, tmp_path, kind, names, message):
    folder = shutil.copytree(folders[kind], tmp_path / "my-model")
    for name in names:
        (folder / name).unlink()
    load = module.load_detector if kind in DETECTORS else module.load_segmenter
    with pytest.raises(ValueError, match=f"my-model {message}") as raised:
        load(folder)
    assert str(folder) in str(raised.value)


def test_a_folder_that_is_not_there(module, tmp_path):
    with pytest.raises(ValueError, match="nowhere lacks config.json"):
        module.load_detector(tmp_path / "nowhere")


def test_another_model_is_refused(module, folders):
    with pytest.raises(ValueError, match="of the type sam: choose a folder of the type grounding-dino, mm-"):
        module.load_detector(folders["sam"])
    with pytest.raises(ValueError, match="of the type grounding-dino: choose a folder of the type sam, sam2, sam2_vi"):
        module.load_segmenter(folders["grounding-dino"])


def test_damaged_folders(module, folders, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(folders["sam"], tmp_path / "damaged")
    weights = load_file(folder / "model.safetensors")
    less = {name: tensor for name, tensor in weights.items() if "mask_decoder.iou_token" not in name}
    save_file(less, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="damaged lacks weights of sam: mask_decoder.iou_token.weight and 0 others"):
        module.load_segmenter(folder)
    (folder / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(ValueError, match="damaged cannot be read as sam: "):
        module.load_segmenter(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json cannot be read: "):
        module.load_segmenter(folder)


def test_what_to_install(comfy_host, module, monkeypatch):
    install = comfy_host.module("install")
    assert module.missing() is None
    with monkeypatch.context() as patch:
        patch.setattr(install, "MODULES", ("grounding_dino", "a_model_of_tomorrow"))
        assert "has no a_model_of_tomorrow, version 4.56 or newer" in module.missing()
    find_spec = install.importlib.util.find_spec
    for name, said in (("transformers", "-m pip install transformers, and"), ("torchvision", "is not installed")):
        with monkeypatch.context() as patch:
            gone = lambda asked, gone=name: None if asked == gone else find_spec(asked)  # noqa: E731
            patch.setattr(install.importlib.util, "find_spec", gone)
            assert name in module.missing() and said in module.missing()


def test_a_damaged_package_is_told(module, monkeypatch):
    def find_spec(name):
        if "." in name:
            raise ImportError("another huggingface-hub is required")
        return name

    monkeypatch.setattr(module, "find_spec", find_spec)
    assert "cannot be imported (another huggingface-hub is required)" in module.missing()
    with pytest.raises(ValueError, match="cannot be imported"):
        module.load_detector(module.Path("anywhere"))
