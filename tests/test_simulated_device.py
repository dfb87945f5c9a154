"""The GPU lane on a device in the machine's memory (see devtools/simulated_device.py), in a process of its own."""

import os
import shutil
import subprocess
import sys

import pytest

from devtools.cache import REPO

TOOLS = ("g++", "ninja")
LANE = ("test_gpu.py", "test_gpu_nodes.py", "test_gpu_models.py")


@pytest.mark.long
@pytest.mark.skipif(not all(map(shutil.which, TOOLS)), reason=f"needs {' and '.join(TOOLS)}")
@pytest.mark.parametrize("name", LANE)
def test_the_lane_of_devices(name):
    command = [sys.executable, "-m", "pytest", "-c", "tests/pytest.ini", "-q", "-rP", "-m", "gpu", f"tests/{name}"]
    done = subprocess.run(
        command, cwd=REPO, env=os.environ | {"MACE_SIMULATED_DEVICE": "8"}, stdout=subprocess.PIPE, text=True
    )
    print(done.stdout)
    assert done.returncode == 0 and "passed" in done.stdout and "skipped" not in done.stdout
