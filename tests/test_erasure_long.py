"""What erasing does to the demo model, measured anew: `python dev.py test -m long` (half an hour on two cores)."""

import json
import subprocess
import sys

import pytest

from tests.graphs import REPO

pytestmark = pytest.mark.long


def measured(tmp_path, *arguments):
    """The results of benchmarks.erasure, run in a process of its own."""
    path = tmp_path / "results.json"
    command = [sys.executable, "-m", "benchmarks.erasure", "--results", str(path), *arguments]
    subprocess.run(command, cwd=REPO, check=True)
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["dog", "airplane"])
def test_one_object(tmp_path, name):
    stages = measured(tmp_path, "--task", "single", "--only", name)["single"][name]
    base, fused = stages["base"], stages["fused"]
    assert base["erased"] > 0.9
    assert fused["erased"] <= 0.1 * base["erased"]
    assert fused["others"] >= base["others"] - 0.02
    assert fused["synonyms"] <= 0.2


def test_ten_mixed(tmp_path):
    stages = measured(tmp_path, "--task", "ten")["ten"]["ten"]
    base, fused = stages["base"], stages["fused"]
    assert fused["erased"] <= 0.1 * base["erased"] and fused["style"] <= 0.1 * base["style"]
    assert fused["others"] >= base["others"] - 0.04
    assert fused["synonyms"] <= 0.3
