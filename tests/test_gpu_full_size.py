"""The full-size table on a real device, every closed form timed: `python dev.py test -m gpu`, with -rP to see it.

What it makes stands in a temporary folder, or in the one that MACE_FULL_SIZE names.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from devtools.cache import REPO

# GiB of the device's memory that a kind's checkpoint, its copy and one concept take, and some more.
KINDS = {"sd15": (512, 8), "sdxl": (1024, 20)}
FEW = ["--images", "2", "--draw-steps", "4", "--steps", "3", "--captions", "40", "--words", "8", "--concepts", "1", "2"]


def table(kind, folder, *more):
    """The rows of benchmarks/full_size.py. Its table goes to stdout."""
    out = folder / f"full_size_{kind}.json"
    command = [sys.executable, "-m", "benchmarks.full_size", "--kind", kind, "--out", str(out), *FEW, *more]
    done = subprocess.run(command, cwd=REPO, stdout=subprocess.PIPE, text=True, check=False)
    print(done.stdout)
    assert done.returncode == 0
    return json.loads(out.read_text())["rows"]


def check_rows(rows, most):
    """Nothing failed, and of both closed forms each was timed alone, for every number of concepts."""
    assert not [row for row in rows if "error" in row]
    assert [row["concepts"] for row in rows if row["stage"] == "Find Aliases"] == [1, 2]
    trained = [row["said"][0] for row in rows if row["stage"] == "Train Erasure LoRA"]
    assert trained == [f"{count} LoRAs trained, 0 of {count} kept from before" for count in (1, 2)]
    for node in ("CFR Refine", "Fuse LoRAs"):
        own = [place for place, row in enumerate(rows) if row["stage"] == node]
        assert [rows[place]["concepts"] for place in own] == [1, 2, most]
        for place in own:
            alone = rows[place + 1]
            assert alone["stage"].strip() == "its closed form alone" and alone["concepts"] == rows[place]["concepts"]
            assert min(alone["first"], alone["second"]) > 0


@pytest.mark.long
def test_the_table_has_both_closed_forms(tmp_path):
    """Of the small variant of a kind, on the device there is."""
    rows = table("sd15", tmp_path, "--small", "--size", "64", "--refine", "3", "--fuse", "3")
    check_rows(rows, 3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", KINDS)
def test_the_full_size_table(kind, tmp_path):
    side, least = KINDS[kind]
    if torch.cuda.get_device_properties(0).total_memory < least * 2**30:
        pytest.skip(f"the device has less than {least} GiB")
    folder = Path(os.environ.get("MACE_FULL_SIZE") or tmp_path)
    rows = table(kind, folder, "--size", str(side), "--refine", "100", "--fuse", "100")
    check_rows(rows, 100)
    assert rows[1]["manager"] == "ModelPatcherDynamic" and all(row["device_bytes"] > 0 for row in rows)
