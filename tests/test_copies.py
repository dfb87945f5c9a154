"""Two copies of the pack in one host: the log says which is in use."""

import importlib.util
import shutil
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.host


def test_the_copy_in_use_is_told(comfy_host, tmp_path, caplog):
    copy = tmp_path / "mace-old"
    for name in ("mace", "nodes", "__init__.py", "install.py"):
        (shutil.copytree if (REPO / name).is_dir() else shutil.copy)(REPO / name, copy / name)
    spec = importlib.util.spec_from_file_location(
        "mace_old", copy / "__init__.py", submodule_search_locations=[str(copy)]
    )
    sys.modules["mace_old"] = module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        other = sys.modules["mace_old.nodes"]
        own = comfy_host.module("nodes.host.copies").tell_other_copies
        own(comfy_host.node_classes["MACE_Concepts"])
        assert not caplog.records
        other.tell_other_copies(other.NODES[0])
        (line,) = [record.getMessage() for record in caplog.records]
        assert f"those of {copy.resolve()}; remove or disable {REPO}" in line
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "mace_old"]:
            del sys.modules[name]
