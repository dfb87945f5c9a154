"""A stand-in for a device without float64, as Apple's: tensors that say they lie on one, and refuse it.

torch's "lazy" device has no kernels here. Under `float32_device()` its tensors hold ordinary ones, by which they
compute; what would make float64 of them raises TypeError, as the device's own kernels do. So does widening on the way
to the CPU, `.to("cpu", torch.float64)`: a device that has no float64 may cast before it copies.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

DEVICE = torch.device("lazy")
REFUSED = "the device has no float64"


class _OnDevice(Tensor):
    """A tensor on DEVICE. held: the CPU's, that it stands for."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor):
        made = Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f"{func} of a tensor on {DEVICE} outside of float32_device()")


class _Device(TorchDispatchMode):
    """Computes what DEVICE is asked for. computed: how often."""

    def __init__(self):
        super().__init__()
        self.computed = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        takes = any(isinstance(given, _OnDevice) for given in tree_leaves((args, kwargs)))
        asked = None if kwargs.get("device") is None else torch.device(kwargs["device"])
        makes = takes if asked is None else asked == DEVICE
        if makes and asked is not None:
            kwargs["device"] = torch.device("cpu")
        made = func(*tree_map_only(_OnDevice, _held, args), **tree_map_only(_OnDevice, _held, kwargs))
        if takes or makes:
            self.computed += 1
        if makes or (takes and func is torch.ops.aten._to_copy.default):
            if any(isinstance(own, Tensor) and own.dtype == torch.float64 for own in tree_leaves(made)):
                raise TypeError(f"{REFUSED}: {func}")
        return tree_map_only(Tensor, _OnDevice, made) if makes else made


class _Lists(TorchFunctionMode):
    """Lists of numbers reach a device's kernels before a dispatch mode sees them."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is torch.tensor and kwargs.get("device") == DEVICE:
            return func(*args, **kwargs | {"device": None}).to(DEVICE)
        if func is Tensor.__getitem__ and isinstance(args[1], list):
            return args[0][torch.tensor(args[1], dtype=torch.long)]
        return func(*args, **kwargs)


def _held(own: _OnDevice) -> Tensor:
    return own.held


@contextmanager
def float32_device() -> Iterator[_Device]:
    """While it is entered, DEVICE computes in everything but float64."""
    with _Lists(), _Device() as device:
        yield device
