"""What a piece of work takes of a device's memory, measured, and how much of it fits."""

import errno
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from comfy import model_management
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Of the memory that is free: allocators split it up, and other programs take some.
SHARE_OF_FREE = 0.85
# How devices, CPUs and files say that memory ran out, which the host does not take for that. The pack's own words for
# the artist begin with "out of memory", and are passed on as they are.
_NO_MEMORY = (
    " out of memory",
    "can't allocate memory",
    "annot allocate memory",
    "not enough memory",
    "not enough GPU video memory",
    "os error 1455",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, of any device."""
    if isinstance(error, MemoryError) or model_management.is_oom(error):
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    return isinstance(error, RuntimeError | OSError) and any(words in str(error) for words in _NO_MEMORY)


@contextmanager
def suppress_out_of_memory() -> Iterator[None]:
    """As `contextlib.suppress`, of errors that say memory ran out. Behind it their tracebacks are gone, and with them
    the tensors that those hold."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise


@dataclass(frozen=True)
class Measured:
    """memory: bytes of the device at the highest, above what was there before.  seconds: of a run after the first."""

    memory: int
    seconds: float


class _Live(TorchDispatchMode):
    """Counts the bytes of tensors made within, as they come and go; `peak` is the most at once.

    What an operation takes for itself while it runs is not seen.
    """

    def __init__(self):
        super().__init__()
        self.peak = 0
        self._bytes = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        results = function(*args, **(kwargs or {}))
        given = {storage._cdata for storage in _storages((args, kwargs))}
        for storage in _storages(results):
            # Views of what was there before, such as weights turned round, are not new.
            if storage._cdata not in given and storage._cdata not in self._seen:
                self._seen.add(storage._cdata)
                self._bytes += storage.nbytes()
                weakref.finalize(storage, self._freed, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self._bytes)
        return results

    def _freed(self, address: int, size: int) -> None:
        self._seen.discard(address)
        self._bytes -= size


def _storages(values) -> list:
    return [value.untyped_storage() for value in tree_leaves(values) if isinstance(value, Tensor)]


def measure(device: torch.device, run: Callable[[], object]) -> Measured:
    """Run a step twice, and measure its peak memory in the first and its time in the second.

    Where a device does not tell its peak (a CPU, Apple's), the tensors that come and go are counted.
    """
    statistics = getattr(torch, device.type, None)
    if hasattr(statistics, "max_memory_allocated") and hasattr(statistics, "reset_peak_memory_stats"):
        statistics.reset_peak_memory_stats(device)
        before = statistics.memory_allocated(device)
        run()
        statistics.synchronize(device)
        memory = statistics.max_memory_allocated(device) - before
        start = time.perf_counter()
        run()
        statistics.synchronize(device)
        return Measured(memory, time.perf_counter() - start)
    with _Live() as live:
        run()
    start = time.perf_counter()
    run()
    return Measured(live.peak, time.perf_counter() - start)


def make_way(copy) -> None:
    """All other models off the copy's device, so that what is free can be told.

    Their weights are inference tensors. Moved where gradients are on they would be torn: half an inference tensor,
    half not, and could not be viewed as anything else any more.
    """
    device = copy.load_device
    if not model_management.is_device_cpu(device):
        with torch.inference_mode():
            model_management.free_memory(1e30, device, keep_loaded=[model_management.LoadedModel(copy)])
            model_management.soft_empty_cache()


def step_aside(copy, needed: float) -> None:
    """The copy off its device as a whole where `needed` bytes of another model do not fit beside it.

    The host would move a part of it, in inference mode: what came back could not be trained through, and what did not
    would be computed in a buffer that the next layer overwrites. `forward.load` brings it back.
    """
    device = copy.load_device
    room = needed * 1.2 + model_management.minimum_inference_memory()
    if not model_management.is_device_cpu(device) and model_management.get_free_memory(device) < room:
        make_way(copy)
        model_management.free_memory(1e30, device)


def how_many_fit(device: torch.device, each: int, most: int) -> int:
    """How many pieces of work of `each` bytes the free memory of a device holds, from 0 to `most`.

    What the host keeps free for other programs (--reserve-vram) stays free.
    """
    free = max(model_management.get_free_memory(device) - model_management.extra_reserved_memory(), 0)
    return int(min(free * SHARE_OF_FREE // max(each, 1), most))
