"""The headless command as a process of its own: from the registry's archive inside a ComfyUI, and without one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open

from tests.archive import build_archive, install_archive

pytestmark = pytest.mark.host

REPO = Path(__file__).resolve().parent.parent


def environment(**more) -> dict:
    """Ours, without what names a ComfyUI."""
    named = ("MACE_COMFYUI", "COMFYUI_PATH", "PYTHONPATH")
    return {**{name: value for name, value in os.environ.items() if name not in named}, **more}


def test_the_archive_inside_a_comfyui(tmp_path, demo_checkpoint):
    """No devtools and nothing that names a ComfyUI: the folder it lies in is used, with its own arguments behind --."""
    comfy = tmp_path / "ComfyUI"
    comfy.mkdir()
    for entry in Path(os.environ["MACE_COMFYUI"]).iterdir():
        if entry.name != "custom_nodes":
            (comfy / entry.name).symlink_to(entry)
    pack = install_archive(build_archive(tmp_path / "node.zip"), comfy / "custom_nodes")
    base, out = tmp_path / "base", tmp_path / "prior.safetensors"
    for name in ("custom_nodes", "models", "input", "output", "user"):
        (base / name).mkdir(parents=True)
    run = subprocess.run(
        [
            sys.executable, "-B", pack / "headless", "prior", "--model", demo_checkpoint, "--count", "3", "--out", out,
            "--json-progress", "--", "--cpu", "--base-directory", base,
        ],
        env=environment(), cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    report = lines[-1]
    assert report["event"] == "report" and report["status"] == "done" and report["device"] == "cpu"
    assert report["files"] == {"out": str(out)} and "progress" in {line["event"] for line in lines}
    # Nothing of a bar, and nothing of the host's, where there is no terminal.
    assert run.stderr == ""
    with safe_open(out, "pt") as opened:
        assert opened.keys()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ComfyUI", "base", "node.zip", "prior.safetensors"]


def test_without_any_comfyui_it_is_said_what_to_do(tmp_path):
    pack = install_archive(build_archive(tmp_path / "node.zip"), tmp_path)
    run = subprocess.run(
        [sys.executable, "-B", "-m", "headless", "erase"], env=environment(), cwd=pack, capture_output=True, text=True
    )
    assert run.returncode == 2 and "put the pack into ComfyUI/custom_nodes or set COMFYUI_PATH" in run.stderr
    run = subprocess.run(
        [sys.executable, "-B", "-m", "headless", "erase"], env=environment(COMFYUI_PATH=str(tmp_path)), cwd=pack,
        capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 2 and f"COMFYUI_PATH is {tmp_path}, which is not a ComfyUI folder" in run.stderr
