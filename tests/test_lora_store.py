"""Files of trained LoRAs and of trainings that were stopped (nodes.host.kept.lora_store)."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

pytestmark = pytest.mark.host

KEY, MAPS = "a" * 64, Path("/proc/self/maps")


@pytest.fixture
def kept(comfy_host, tmp_path):
    """A store that holds one state, of step 2."""
    state = comfy_host.module("mace.method.train").TrainState
    up, down, mean, square = (torch.ones(2, 3) for _ in range(4))
    store = comfy_host.module("nodes.host.kept.lora_store").LoraStore(tmp_path / "loras")
    store.put_state(KEY, state(torch.ones(2), {"key": (up, down)}, {"key": ((mean, square), None)}), "one list")
    return store


@pytest.mark.skipif(not MAPS.exists(), reason="the system does not say what is mapped")
def test_nothing_of_a_file_is_mapped_after_reading(kept):
    """Windows replaces and removes no file that is mapped, and the next state goes in its place."""
    found = kept.state(KEY)
    assert found.step == 2 and str(kept.folder) not in MAPS.read_text()


def test_a_state_says_what_its_training_was_begun_on(comfy_host, kept):
    """Also after it went on with another refinement. One that does not say so, of an earlier version, is read too."""
    module = comfy_host.module("nodes.host.kept.lora_store")
    later = module.LoraStore(kept.folder)
    later.put_state(KEY, later.state(KEY), "another list")
    again = module.LoraStore(kept.folder)
    assert again.state(KEY).step == 2 and again.begun_on == {KEY: "one list"}
    (path,) = kept.folder.iterdir()
    tensors = load_file(path)
    with safe_open(path, framework="pt") as opened:
        metadata = opened.metadata()
    module.save_file(tensors, path, {"keys": metadata["keys"]})
    earlier = module.LoraStore(kept.folder)
    assert earlier.state(KEY).step == 2 and earlier.begun_on == {}


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


def test_on_a_full_disk_a_lora_takes_the_place_of_states_then_of_others(comfy_host, kept, monkeypatch):
    """As safetensors says it; where there is another reason nothing goes."""
    module = comfy_host.module("nodes.host.kept.lora_store")
    concept, write = comfy_host.module("mace.concepts.concept").Concept("dog", "sky", "object"), module.save_file
    trained = module.ErasureLora(concept, {"key": (torch.ones(2, 1), torch.ones(1, 3))}, torch.ones(1))
    state = kept.state(KEY)
    kept.put_state("b" * 64, state, "")
    other = module.LoraStore(kept.folder)
    for letter in "cd":
        other.put_lora(letter * 64, trained, (1,))
    room, said = [4], "Error while serializing: I/O error: No space left on device (os error 28)"

    def limited(*given):
        if len(list(kept.folder.iterdir())) >= room[0]:
            raise module.SafetensorError(said)
        write(*given)

    def names():
        return sorted(path.name[0] + path.name[65:70] for path in kept.folder.iterdir())

    monkeypatch.setattr(module, "save_file", limited)
    kept.put_lora(KEY, trained, (1,))
    assert names() == ["alora.", "bstate", "clora.", "dlora."] and kept.problem is None and not kept.removed
    kept.put_lora("e" * 64, trained, (1,))
    assert names() == ["alora.", "clora.", "dlora.", "elora."]
    kept.put_state("f" * 64, state, "")
    assert "No space left" in kept.problem
    kept.put_lora("f" * 64, trained, (1,))
    assert len(names()) == 4 and names()[0] == "alora." and len(kept.removed) == 1 and kept.problem is None
    before, said = names(), "Error while serializing: I/O error: Permission denied (os error 13)"
    kept.put_lora("0" * 64, trained, (1,))
    assert names() == before and "Permission denied" in kept.problem
