"""A device in the machine's memory that takes a card's place: see simulated_device.cpp.

MACE_SIMULATED_DEVICE names its GiB. It shows that nothing mixes devices, what the host's plain memory manager does, and
what happens as memory ends; not what a card's own kernels give, nor the manager that the host has on NVIDIA.
"""

import os
import sys
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from pathlib import Path
from types import ModuleType

import torch

SIZE = os.environ.get("MACE_SIMULATED_DEVICE")
# A kind that the host asks torch for, by an extension that few have.
NAME = "npu"


def find_device() -> torch.device | None:
    """The simulated device where it is asked for, else the first card of CUDA's, None without one."""
    if SIZE:
        return start(int(float(SIZE) * 2**30))
    return torch.device("cuda") if torch.cuda.is_available() else None


def statistics_of(device: torch.device | None) -> ModuleType:
    """torch's module of a device's kind, CUDA's without one: memory_allocated(), synchronize() and the like."""
    return torch.cuda if device is None else getattr(torch, device.type)


def start(limit: int) -> torch.device:
    """Make the device known to torch, once in a process and before the host is imported. limit: its memory, bytes.

    It is compiled once, and kept where torch keeps extensions: that takes a C++ compiler and ninja.
    """
    if not hasattr(torch, NAME):
        _register()
    torch.ops.mace_simulated_device.set_limit(limit)
    return torch.device(NAME, 0)


def _register() -> None:
    # Reads the compiler's whereabouts as it is imported.
    from torch.utils import cpp_extension

    source = Path(__file__).with_suffix(".cpp")
    cpp_extension.load("mace_simulated_device", [str(source)], extra_cflags=["-O1", "-g0"], is_python_module=False)
    memory = torch.ops.mace_simulated_device
    torch.utils.rename_privateuse1_backend(NAME)
    module = ModuleType(f"torch.{NAME}")
    # What torch and the host ask of a device's module.
    vars(module).update(
        is_available=lambda: True,
        is_initialized=lambda: True,
        _is_in_bad_fork=lambda: False,
        manual_seed_all=lambda seed: None,
        device_count=lambda: 1,
        current_device=lambda: 0,
        get_device_name=lambda _=None: "simulated",
        get_amp_supported_dtype=lambda: [torch.float16, torch.bfloat16],
        synchronize=lambda _=None: None,
        empty_cache=lambda: None,
        memory_stats=lambda _=None: dict.fromkeys(
            ("active_bytes.all.current", "reserved_bytes.all.current"), memory.taken()
        ),
        mem_get_info=lambda _=None: (memory.limit() - memory.taken(), memory.limit()),
        memory_allocated=lambda _=None: memory.taken(),
        max_memory_allocated=lambda _=None: memory.peak(),
        reset_peak_memory_stats=lambda _=None: memory.reset_peak(),
    )
    torch._register_device_module(NAME, module)
    torch.utils.generate_methods_for_privateuse1_backend()
    # What the host imports to see whether there is such a device.
    sys.modules["torch_npu"] = extension = module_from_spec(ModuleSpec("torch_npu", None))
    # transformers imports kernels of that extension by name, for an attention that is never chosen here.
    extension.__getattr__ = lambda name: None
    # The torch of such a device is none for CUDA, by which the host would know a card of NVIDIA's.
    torch.version.cuda = None
