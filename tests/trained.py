"""LoRAs of the demo model trained in the host, and the store of what is trained, for the tests of training."""

import pytest
import torch

from tests.stages import stages
from tests.test_refine_node import concepts


@pytest.fixture(scope="module")
def listed(comfy_host):
    return concepts(comfy_host, "dog | pooch -> sky\nship -> ground")


@pytest.fixture(scope="module")
def parts(comfy_host, demo, listed):
    """(refined MODEL, refinement, images, LoraSet), all trained on this list's refinement."""
    comfy_host.forget_trained()
    return stages(comfy_host, demo, listed)


@pytest.fixture
def store(comfy_host, tmp_path, monkeypatch):
    """The store of trained LoRAs, emptied; as it was before the test afterwards. The one on disk is a new folder."""
    store, disk = comfy_host.module("nodes.stages.trained")._store, comfy_host.module("nodes.host.kept.lora_store")
    before, size = store._entries.copy(), store.bytes
    monkeypatch.setattr(disk, "store", lambda: disk.LoraStore(tmp_path / "loras"))
    store.clear()
    comfy_host.module("nodes.stages.trained")._forgotten.clear()
    yield store
    store._entries, store.bytes = before, size


def same(one, other, **tolerance):
    for key, pair in one.lora.items():
        for a, b in zip(pair, other.lora[key], strict=True):
            torch.testing.assert_close(a, b, **tolerance)
