"""What a step takes of memory, on devices that do not tell their peak (nodes.host.model.memory)."""

import errno
import gc
import weakref

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

pytestmark = pytest.mark.host

CPU = torch.device("cpu")
MILLION = 4 * 1_000_000


@pytest.fixture(scope="module")
def memory(comfy_host):
    return comfy_host.module("nodes.host.model.memory")


def allocated_peak(run) -> int:
    """The most bytes that the CPU's allocator had given out at once, by torch's profiler."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = profiler.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    now = peak = 0
    for _, change in changes:
        now += change
        peak = max(peak, now)
    return peak


def test_tensors_are_counted_while_they_live(memory):
    """By hand: two of a million at once, then one beside the third; views and what was there before count nothing."""
    given = torch.ones(1000, 1000)

    def run():
        one = given + 1
        two = one.t().reshape(-1)[:10] + 1
        del one
        three = given.t() * 2
        assert two.numel() == 10 and three.shape == (1000, 1000)

    # The transposed is copied by reshape.
    assert memory.measure(CPU, run).memory == pytest.approx(2 * MILLION, rel=1e-3)


@pytest.mark.parametrize("recomputed", [False, True])
def test_the_peak_is_what_the_allocator_says(memory, recomputed):
    """Of a chain of blocks, kept or computed again: then the largest block's own tensors count once."""
    layers = [
        torch.nn.Sequential(torch.nn.Linear(256, 1024), torch.nn.GELU(), torch.nn.Linear(1024, 256)) for _ in "1234"
    ]
    given = torch.randn(512, 256)

    def run():
        hidden = given
        for layer in layers:
            hidden = checkpoint(layer, hidden, use_reentrant=False) if recomputed else layer(hidden)
        # Nothing stays: a gradient of the run before would be given back in this one.
        torch.autograd.grad(hidden.square().sum(), [p for layer in layers for p in layer.parameters()])

    run()
    found = memory.measure(CPU, run).memory
    assert found == pytest.approx(allocated_peak(run), rel=0.01)
    assert (found < 5 * MILLION) == recomputed


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 18.02 GB, max allowed: 18.13 GB)"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:80] DefaultCPUAllocator: not enough memory: you tried"), True),
        (OSError("The paging file is too small for this operation to complete. (os error 1455)"), True),
        (RuntimeError("NPU out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("Could not allocate tensor. There is not enough GPU video memory available!"), True),
        (RuntimeError("unable to mmap 8 bytes from file <unet>: Cannot allocate memory (12)"), True),
        (OSError("Cannot allocate memory (os error 12)"), True),
        (OSError(errno.ENOMEM, "in the system's own language"), True),
        (MemoryError(), True),
        (RuntimeError("out of memory while training 'dog' alone: use smaller images"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("not enough memory in the shop"), False),
    ],
)
def test_every_device_says_in_its_own_words_that_memory_ran_out(memory, error, is_one):
    assert memory.is_out_of_memory(error) == is_one


def test_the_tensors_of_what_ran_out_of_memory_are_gone_behind_it(memory):
    """By then, and not with the next garbage collection; other errors pass."""
    held = []

    def run(kind):
        own = torch.ones(1)
        held.append(weakref.ref(own))
        raise kind("said")

    gc.disable()
    try:
        with memory.suppress_out_of_memory():
            run(MemoryError)
        assert held[0]() is None
    finally:
        gc.enable()
    with pytest.raises(ValueError, match="said"), memory.suppress_out_of_memory():
        run(ValueError)


@pytest.mark.parametrize(
    ("free", "each", "fit"), [(13, 1, 8), (13, 3, 2), (2, 1, 0), (4, 1, 0), (5, 1, 1), (1000, 1, 32), (13, 0, 32)]
)
def test_how_many_fit_of_what_is_free(memory, monkeypatch, free, each, fit):
    """85 percent of what the host leaves of it, by hand, and no more than asked for."""
    monkeypatch.setattr(memory.model_management, "get_free_memory", lambda device: free * MILLION)
    monkeypatch.setattr(memory.model_management, "EXTRA_RESERVED_VRAM", 3 * MILLION)
    assert memory.how_many_fit(CPU, each * MILLION, 32) == fit
