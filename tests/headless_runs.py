"""The headless command in the test process, on the host that is open there."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from devtools.identity_layers import skip_identity_layers
from headless.cli import main

TRAINED_STEPS = 4
SMALL = ("--width", 64, "--height", 64)
# Of the training images.
FEW = (*SMALL, "--images", 2, "--image-steps", 2, "--seed", 3)


def tensors(path) -> dict[str, torch.Tensor]:
    with safe_open(path, "pt") as opened:
        return {key: opened.get_tensor(key) for key in opened.keys()}


def same(first, second) -> bool:
    first, second = tensors(first), tensors(second)
    assert list(first) == list(second)
    return all(torch.equal(own, second[key]) and own.dtype == second[key].dtype for key, own in first.items())


def settings_of(path) -> dict:
    with safe_open(path, "pt") as opened:
        return json.loads(opened.metadata()["mace.provenance"])


def stage_of(report: dict, node: str) -> dict:
    return next(stage for stage in report["stages"] if stage["node"] == node)


class Headless:
    """Runs commands. host: the open host, None for those that must end before there is one."""

    def __init__(self, host, capsys):
        self.host, self._capsys = host, capsys
        self.lines: list[dict] = []

    def __call__(self, *arguments) -> dict:
        """The report of a command, whose exit code it must state; what else stood on stdout is in `lines`."""

        def opened(comfy_arguments, verbose):
            assert self.host is not None, "the host was opened"
            return self.host

        self._capsys.readouterr()
        code = main([str(part) for part in arguments], opened)
        *lines, last = self._capsys.readouterr().out.splitlines()
        self.lines = [json.loads(line) for line in lines]
        report = json.loads(last)
        assert report["exit_code"] == code
        return report


@pytest.fixture
def headless(comfy_host, capsys, loaded_quickly, monkeypatch):
    """The command on the host in this process, whose input folder is the same again afterwards."""
    # A file of captions makes its folder the input folder; the command has a process of its own elsewhere.
    monkeypatch.setattr(comfy_host.folder_paths, "input_directory", comfy_host.folder_paths.input_directory)
    return Headless(comfy_host, capsys)


@pytest.fixture
def loaded_quickly(comfy_host, monkeypatch):
    """Checkpoints that are opened skip the text layers that change nothing, for time; the bits are the same."""
    import comfy.sd

    load = comfy.sd.load_checkpoint_guess_config

    def quick(*arguments, **options):
        found = load(*arguments, **options)
        if found[1] is not None:
            skip_identity_layers(found[1])
        return found

    load_clip = comfy.sd.load_clip

    def quick_clip(*arguments, **options):
        clip = load_clip(*arguments, **options)
        skip_identity_layers(clip)
        return clip

    monkeypatch.setattr(comfy.sd, "load_checkpoint_guess_config", quick)
    monkeypatch.setattr(comfy.sd, "load_clip", quick_clip)


@pytest.fixture
def short(comfy_host, monkeypatch):
    """A preset that trains a few steps on few pictures, for time."""
    erasing, presets = (comfy_host.module(name) for name in ("nodes.stages.erasing", "mace.presets.presets"))
    chosen = presets.Preset(lambda type: presets.LoraRow(2, TRAINED_STEPS, 3e-3))
    monkeypatch.setitem(presets.PRESETS, presets.PAPER, chosen)
    monkeypatch.setattr(erasing, "IMAGES", 2)
    monkeypatch.setattr(erasing, "SAMPLING", {**erasing.SAMPLING, "steps": 2})


@pytest.fixture
def lines_of(tmp_path):
    """A list of concepts in a file."""

    def write(text: str, name: str = "list.txt") -> Path:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path / name

    return write


@pytest.fixture
def loaded_once(loaded_quickly, monkeypatch):
    """Checkpoints that several commands of a test open are read once, for time, as a graph's loader keeps them."""
    import comfy.sd

    load, kept = comfy.sd.load_checkpoint_guess_config, {}

    def once(path, *arguments, **options):
        key = (path, repr(arguments), repr(options))
        if key not in kept:
            kept[key] = load(path, *arguments, **options)
        return kept[key]

    monkeypatch.setattr(comfy.sd, "load_checkpoint_guess_config", once)
