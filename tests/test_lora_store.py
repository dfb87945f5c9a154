"""Files of trained LoRAs and of trainings that were stopped (nodes.host.kept.lora_store)."""

from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.host

KEY, MAPS = "a" * 64, Path("/proc/self/maps")


@pytest.fixture
def kept(comfy_host, tmp_path):
    """A store that holds one state, of step 2."""
    state = comfy_host.module("mace.method.train").TrainState
    up, down, mean, square = (torch.ones(2, 3) for _ in range(4))
    store = comfy_host.module("nodes.host.kept.lora_store").LoraStore(tmp_path / "loras")
    store.put_state(KEY, state(torch.ones(2), {"key": (up, down)}, {"key": ((mean, square), None)}))
    return store


@pytest.mark.skipif(not MAPS.exists(), reason="the system does not say what is mapped")
def test_nothing_of_a_file_is_mapped_after_reading(kept):
    """Windows replaces and removes no file that is mapped, and the next state goes in its place."""
    found = kept.state(KEY)
    assert found.step == 2 and str(kept.folder) not in MAPS.read_text()


def test_only_what_is_damaged_is_removed(comfy_host, kept, monkeypatch):
    """What cannot be read now may be read later; and what is read but cannot be marked as used is not lost."""
    module, (path,) = comfy_host.module("nodes.host.kept.lora_store"), kept.folder.iterdir()

    def denied(*given, **settings):
        raise PermissionError("another program has it")

    with monkeypatch.context() as patched:
        patched.setattr(module, "safe_open", denied)
        assert kept.state(KEY) is None
    with monkeypatch.context() as patched:
        patched.setattr(module.os, "utime", denied)
        assert kept.state(KEY).step == 2
    path.write_bytes(path.read_bytes()[:20])
    assert kept.state(KEY) is None and not path.exists()
