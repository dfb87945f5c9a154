"""Networks beside the host's own: where their weights lie, how much is looked at together, what a full device means."""

import pytest
import torch

pytestmark = pytest.mark.host

NO_MEMORY = torch.cuda.OutOfMemoryError("no memory")


@pytest.fixture
def networks(comfy_host):
    return comfy_host.module("nodes.host.networks")


def small(networks):
    return networks.Network(networks.Held(torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))))


@pytest.fixture
def network(networks):
    made = small(networks)
    yield made
    made.release()


def too_much(limit, tried, error=NO_MEMORY):
    """Work that runs out of memory with more than `limit()` items."""

    def work(part):
        tried.append(len(part))
        if len(part) > limit():
            raise error
        return part.tolist()

    return work


@pytest.mark.parametrize("error", [NO_MEMORY, RuntimeError("MPS backend out of memory")])
def test_less_memory_means_smaller_batches(networks, error):
    tried = []
    assert networks.Batches(4).run(torch.arange(5), too_much(lambda: 1, tried, error)) == [0, 1, 2, 3, 4]
    assert tried == [4, 2, 1, 1, 1, 1, 1]


def test_a_size_that_failed_is_not_tried_again(networks):
    """Where there is less room for a while, there may be more later."""
    tried, together = [], networks.Batches(8)
    for count, room in ((4, 3), (9, None), (3, 2)):
        assert together.run(torch.arange(count), too_much(lambda: 4, tried), room) == list(range(count))
    assert tried == [3, 1, 8, 4, 4, 1, 2, 1]


def test_a_full_device_is_emptied_once(networks, network):
    from comfy import model_management

    def limit():
        return 0 if any(entry.model is network._patcher for entry in model_management.current_loaded_models) else 1

    network.loaded()
    tried = []
    assert networks.Batches(1).run(torch.arange(2), too_much(limit, tried)) == [0, 1] and tried == [1, 1, 1]
    tried = []
    with pytest.raises(torch.cuda.OutOfMemoryError):
        networks.Batches(2).run(torch.arange(2), too_much(lambda: 0, tried))
    assert tried == [2, 1, 1]


def test_what_is_no_lack_of_memory_is_raised_at_once(networks):
    tried = []

    def work(part):
        tried.append(len(part))
        raise ValueError("bad picture")

    with pytest.raises(ValueError, match="bad picture"):
        networks.Batches(4).run(torch.arange(4), work)
    assert tried == [4]


def test_room_is_made_for_pictures_and_as_many_run_as_fit(monkeypatch, networks, network):
    from comfy import model_management

    asked, load = [], model_management.load_models_gpu

    def spy(models, memory_required=0, **more):
        asked.append(memory_required)
        return load(models, memory_required=memory_required, **more)

    monkeypatch.setattr(model_management, "load_models_gpu", spy)
    for free, expected in ((3.5e9, 3), (9e9, 4), (1e8, 1)):
        monkeypatch.setattr(model_management, "get_free_memory", lambda device, free=free: free)
        assert network.room_for(4, 1e9) == expected
    assert asked == [4e9] * 3


def test_without_room_for_weights_they_are_on_the_device_all_the_same(monkeypatch, networks):
    """As with --novram, where the host leaves weights of layers that are not its own where they are."""
    from comfy import model_management

    free = {False: 1e9, True: (1e9, 1e9)}
    monkeypatch.setattr(model_management, "vram_state", model_management.VRAMState.NO_VRAM)
    monkeypatch.setattr(model_management, "get_free_memory", lambda _=None, torch_free_too=False: free[torch_free_too])
    # From the meta device nothing comes back, so the host must not hold on to it.
    monkeypatch.setattr(model_management, "current_loaded_models", [])
    network = small(networks)
    network._patcher.load_device = torch.device("meta")
    module, device = network.loaded()
    assert device == torch.device("meta")
    assert {value.device.type for value in (*module.parameters(), *module.buffers())} == {"meta"}
