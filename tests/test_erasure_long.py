"""What erasing does to the demo model, measured anew: `python dev.py test -m long` (ten minutes on two cores)."""

import json
import subprocess
import sys

import pytest

from benchmarks.erasure.records import Records
from benchmarks.erasure.tables import share
from benchmarks.erasure.tasks import FOUND
from mace.measure.accuracy import harmonic_mean
from tests.graphs import REPO

pytestmark = pytest.mark.long


def measured(folder, task, *arguments, method="fused"):
    """The cells of one task, run in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.erasure", "--results", str(folder), "--task", task, *arguments]
    done = subprocess.run([*command, "--method", method], cwd=REPO, check=True, stdout=subprocess.PIPE, text=True)
    cells = Records(task, folder).cells
    assert json.loads(done.stdout.splitlines()[-1])[task] == len(cells)
    return cells


@pytest.mark.parametrize("name", ["dog", "airplane"])
def test_one_object(tmp_path, name):
    cells = measured(tmp_path, "objects", "--only", name)
    assert set(cells) == {f"{name}/base", f"{name}/fused"}
    base, fused = cells[f"{name}/base"], cells[f"{name}/fused"]
    assert share(base, "erased") > 0.9
    assert share(fused, "erased") <= 0.1 * share(base, "erased")
    assert share(fused, "others") >= share(base, "others") - 0.02
    assert share(fused, "synonyms") <= 0.2


def test_ten_mixed(tmp_path):
    cells = measured(tmp_path, "mixed")
    base, fused = cells["ten/base"], cells["ten/fused"]
    assert share(base, "erased") > 0.9 and share(base, "style", "style") > 0.9
    assert share(fused, "erased") <= 0.1 * share(base, "erased")
    assert share(fused, "style", "style") <= 0.1 * share(base, "style", "style")
    assert share(fused, "others") >= share(base, "others") - 0.04
    assert share(fused, "synonyms") <= 0.3


def test_a_shared_word_and_what_is_recorded_is_not_run_again(tmp_path):
    cells = measured(tmp_path, "shared", "--only", "dog")
    assert share(cells["dog/fused"], "erased") <= 0.1 and share(cells["dog/fused"], "kept") >= 0.9
    before = (tmp_path / "shared.jsonl").read_bytes()
    measured(tmp_path, "shared", "--only", "dog")
    assert (tmp_path / "shared.jsonl").read_bytes() == before


@pytest.mark.parametrize("count, lost", [(10, 0.01), (100, 0.05)])
def test_many_by_the_closed_form(tmp_path, count, lost):
    """With the preset for lists of any length, and a prior of the whole vocabulary that steps aside."""
    cells = measured(tmp_path, "mass", "--only", str(count), method="own words")
    base, erased = cells[f"{count}/base"], cells[f"{count}/own words"]
    assert share(base, "erased") > 0.9 and share(erased, "erased") <= 0.05
    assert share(erased, "others") >= share(base, "others") - lost
    assert share(erased, "captions") >= share(base, "captions") - 0.05
    assert harmonic_mean(1 - share(erased, "erased"), share(erased, "others")) > 0.95


@pytest.mark.parametrize("method, lost, left", [("own words", 0.02, 0.2), ("own words, near kept", 0.01, 0.25)])
def test_ten_with_the_aliases_that_the_model_tells(tmp_path, method, lost, left):
    """Nobody has named a synonym, nor what is kept. left: of the synonyms."""
    cells = measured(tmp_path, "mass", "--only", FOUND, method=method)
    base, erased = cells[f"{FOUND}/base"], cells[f"{FOUND}/{method}"]
    assert share(base, "synonyms") > 0.9 and share(erased, "erased") == 0
    assert share(erased, "synonyms") <= left
    assert share(erased, "others") >= share(base, "others") - lost
    assert share(erased, "captions") >= share(base, "captions") - 0.05
