"""What the pack says of itself: version, installation report, what the registry archive leaves out."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import mace

REPO = Path(__file__).resolve().parent.parent


def test_one_version():
    found = re.search(r'^version = "(.+)"$', (REPO / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert found and found[1] == mace.__version__


def test_install_reports_and_changes_nothing():
    before = subprocess.run(["git", "status", "--porcelain"], cwd=REPO, capture_output=True, text=True).stdout
    run = subprocess.run([sys.executable, "-B", REPO / "install.py"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "torch" in run.stdout and "not inside ComfyUI's custom_nodes" in run.stdout
    after = subprocess.run(["git", "status", "--porcelain"], cwd=REPO, capture_output=True, text=True).stdout
    assert before == after


def test_install_tells_a_missing_package():
    """Python without site-packages has none of them."""
    run = subprocess.run([sys.executable, "-I", "-S", REPO / "install.py"], capture_output=True, text=True)
    assert run.returncode == 1
    assert "torch: missing" in run.stdout and "Not ready" in run.stdout


@pytest.mark.parametrize(
    "version, word", [("0.30.0", "0.30.0: fine"), ("1.2", "1.2: fine"), ("0.3.51", "older than 0.30")]
)
def test_install_compares_comfyui(tmp_path, version, word):
    pack = tmp_path / "custom_nodes" / "mace-comfyui"
    pack.mkdir(parents=True)
    shutil.copy(REPO / "install.py", pack)
    (tmp_path / "comfyui_version.py").write_text(f'__version__ = "{version}"\n')
    run = subprocess.run([sys.executable, "-B", pack / "install.py"], capture_output=True, text=True)
    assert run.returncode == 0 and word in run.stdout


def test_install_is_standard_library_only_and_offline():
    source = (REPO / "install.py").read_text(encoding="utf-8")
    imported = set(re.findall(r"^(?:import|from) (\w+)", source, re.MULTILINE))
    assert imported <= {"importlib", "sys", "pathlib"}


def test_developers_tools_are_left_out_of_the_archive():
    ignored = (REPO / ".comfyignore").read_text(encoding="utf-8").split()
    assert {"dev.py", "devtools/", "tests/", "assets/demo/", "benchmarks/"} <= set(ignored)
    for name in ("__init__.py", "nodes/", "mace/", "web/", "example_workflows/", "install.py", "README.md"):
        assert name not in ignored and (REPO / name).exists()


def test_numerics_do_not_know_the_host():
    for path in (REPO / "mace").rglob("*.py"):
        assert not re.search(r"^\s*(?:import|from) (?:comfy|folder_paths|nodes)\b", path.read_text(), re.MULTILINE)
