"""What a value holds, to be hashed: tensors, containers, and what other packs hang on a MODEL: functions and objects.

A function is its code, its defaults and attributes, what it closes over and the globals it names; an object its class
and attributes, or what it would be pickled as; a class of another pack its attributes and bases. What comes with
Python, torch, numpy, the host itself or this pack is told by its name, which says nothing of where the pack lies: what
is kept on the disk is found again when it is moved, and with another Python. What runs leave around functions is no
part of them where that can be seen (see `left`). What can be told in no way is new every time, so that nothing is
reused for it.
"""

import copyreg
import dataclasses
import enum
import functools
import logging
import sys
import threading
import types
import uuid
import weakref
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from ..model.unet import tensor_bytes
from . import left
from .modules import module_parts

# What is nested deeper has no value of its own that could be told.
DEEPEST = 60
# Packages whose own functions and classes do not change while a host runs.
_SETTLED = {*sys.stdlib_module_names, "torch", "torchvision", "numpy", "scipy", "einops", "PIL", "safetensors"}
_SETTLED |= {
    "transformers",
    "kornia",
    "aiohttp",
    "tqdm",
    "nodes",
    "folder_paths",
    "server",
    "execution",
    "latent_preview",
}
_SETTLED |= {"comfy", "comfy_api", "comfy_config", "comfy_execution", "comfy_extras", "node_helpers"}
# They hold nothing that could be computed with, and what they stand at passes.
_LOCKS = (type(threading.Lock()), type(threading.RLock()), threading.Condition, threading.Event)
_LOCKS += (threading.Semaphore, threading.Barrier)
# The pack itself. The host names it by its folder.
_PACK = __name__.removesuffix(".nodes.host.kept.values")
_OURS = "mace-comfyui"
# Py_TPFLAGS_HEAPTYPE: the class was made while running, as those of Python code are.
_HEAP = 1 << 9


class Feeder:
    """Feeds values into a digest; with None it looks for what assigns variables alone, and reads no tensors.

    also(value): (kind, parts) of values that the caller knows better, or None.  came_up: what `left.assigned_by` gives;
    of functions that come up it is added, and a digest counts when it was all there before.
    """

    def __init__(self, digest, also=lambda value, inside: None, came_up: set[int] | None = None):
        self._digest, self._also = digest, also
        self._came_up = set() if came_up is None else came_up
        # Functions and classes name one another; each is told once.
        self._told: dict[int, int] = {}

    def feed(self, value, inside: tuple = ()) -> None:
        """inside: the ids of the objects that hold this one; one that holds itself counts by how far up it is."""
        if self._digest is None and isinstance(value, Tensor | np.ndarray | bytes):
            return
        if isinstance(value, Tensor):
            for raw in tensor_bytes(value):
                self._digest.update(raw)
            return
        if value is None or isinstance(value, bool | int | float | complex | str | bytes | torch.dtype | torch.device):
            self._say(f"{type(value).__name__} {value!r}")
            return
        if _is_named(value):
            named = getattr(value, "__qualname__", None) or getattr(value, "__name__", None) or repr(value)
            said = "" if isinstance(value, types.ModuleType) else named
            self._say(f"{type(value).__qualname__} {_home(value)} {said}")
            return
        if id(value) in inside:
            self._say(f"above {len(inside) - inside.index(id(value))}")
            return
        if len(inside) > DEEPEST:
            self._say(_never_again())
            return
        if isinstance(value, types.FunctionType | type) and not is_settled(value):
            if id(value) in self._told:
                self._say(f"told {self._told[id(value)]}")
                return
            self._told[id(value)] = len(self._told)
        if isinstance(value, types.FunctionType):
            self._came_up |= left.assigned_by(value)
            kind, parts = _function_parts(value, self._came_up)
        else:
            kind, parts = self._also(value, inside) or _parts(value)
        self._say(kind)
        inside = (*inside, id(value))
        if isinstance(parts, Mapping):
            for name in sorted(parts, key=repr):
                self.feed(name, inside)
                self.feed(parts[name], inside)
        else:
            for part in parts:
                self.feed(part, inside)

    def _say(self, words: str) -> None:
        if self._digest is not None:
            self._digest.update(f"{words};".encode(errors="surrogatepass"))


def _home(value) -> str:
    """The module of a class or function, or a module's own name; "" where it has none."""
    module = value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", None) or ""
    return _OURS + module.removeprefix(_PACK) if module.startswith(f"{_PACK}.") else module


def _is_named(value) -> bool:
    """Whether the name of a value says everything of it."""
    if isinstance(value, types.BuiltinFunctionType):
        return value.__self__ is None or isinstance(value.__self__, types.ModuleType)
    return isinstance(value, enum.Enum | types.ModuleType | range | torch.Size)


def _parts(value) -> tuple[str, Mapping | list | tuple]:
    """(what kind of thing a value is, all that it is made of)."""
    if isinstance(value, Mapping) and not hasattr(value, "__dict__"):
        return f"map {len(value)}", value
    if isinstance(value, list | tuple):
        return f"list {len(value)}", value
    if isinstance(value, set | frozenset):
        return f"set {len(value)}", sorted(value, key=repr)
    if isinstance(value, np.ndarray):
        return f"array {value.dtype} {value.shape}", [np.ascontiguousarray(value).tobytes()]
    if isinstance(value, type):
        return f"class {_home(value)}.{value.__qualname__}", () if is_settled(value) else _class_parts(value)
    if isinstance(value, types.MethodType | types.BuiltinFunctionType):
        return "method", [getattr(value, "__func__", value.__name__), value.__self__]
    if isinstance(value, functools.partial):
        return "partial", [value.func, value.args, value.keywords]
    if isinstance(value, nn.Module):
        return f"module {type(value).__qualname__}", list(module_parts(value))
    if hasattr(value, "weights") and hasattr(value, "loaded_keys"):  # the host's weight adapters (LoRA and others)
        return type(value).__qualname__, [value.weights]
    if isinstance(value, weakref.ReferenceType):
        return "reference", [value()]
    if isinstance(value, logging.Logger):
        return f"logger {value.name}", ()
    if isinstance(value, _LOCKS):
        return f"lock {type(value).__qualname__}", ()
    return _object_parts(value)


def _object_parts(value) -> tuple[str, Mapping | list]:
    name, own = f"{_home(type(value))}.{type(value).__qualname__}", type(value)
    more = {} if is_settled(own) else {"class of": own}
    if dataclasses.is_dataclass(value):
        return name, {**{f.name: getattr(value, f.name) for f in dataclasses.fields(value)}, **more}
    if isinstance(value, bytearray | memoryview):
        return name, [bytes(value)]
    reduced = _reduced(value) if _reduces_itself(own) and not isinstance(value, Mapping) else None
    if reduced is not None:
        return name, [*reduced, *more.values()]
    # Classes written in Python keep what they hold where it can be seen; a subclass of anything else may not.
    if hasattr(value, "__dict__") and all(base.__flags__ & _HEAP for base in own.__mro__[:-1]):
        slots = {slot for base in own.__mro__ for slot in _slots(base) if hasattr(value, slot)}
        return name, {**{slot: getattr(value, slot) for slot in slots}, **vars(value), **more}
    if isinstance(value, Mapping):
        return name, [dict(value), vars(value), *more.values()]
    reduced = _reduced(value)
    return (_never_again(), ()) if reduced is None else (name, [*reduced, *more.values()])


def _reduces_itself(own: type) -> bool:
    return own.__reduce__ is not object.__reduce__ or own.__reduce_ex__ is not object.__reduce_ex__


def _reduced(value) -> list | None:
    """A value as pickle would write it (deques, patterns, dates, itemgetters, random states); None where it cannot."""
    try:
        known = copyreg.dispatch_table.get(type(value))
        reduced = known(value) if known else value.__reduce_ex__(4)
    except Exception:  # what cannot be pickled says so in ways of its own
        return None
    if isinstance(reduced, str):
        return [reduced]
    return [list(part) if isinstance(part, Iterator) else part for part in reduced]


def _slots(base: type) -> tuple[str, ...]:
    slots = base.__dict__.get("__slots__", ())
    return tuple(name for name in ((slots,) if isinstance(slots, str) else slots) if not name.startswith("__"))


def is_settled(value) -> bool:
    """Whether a class or function can be found by its name in a package that does not change."""
    module = getattr(value, "__module__", None) or ""
    if module.partition(".")[0] not in _SETTLED and not module.startswith(f"{_PACK}."):
        return False
    found = sys.modules.get(module)
    for part in value.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is value


def _function_parts(function: types.FunctionType, came_up: set[int]) -> tuple[str, list]:
    # Not by `__module__`: a pack's function takes that of the host's that it wraps.
    is_host = function.__globals__.get("__name__", "").partition(".")[0] in _SETTLED
    held = left.closure_of(function, is_host, came_up)
    parts = [_code(function.__code__), function.__defaults__, function.__kwdefaults__, held]
    if not is_host:
        named = _globals_of(function)
        parts += [named] if named else []
    if vars(function):
        parts.append(vars(function))
    return f"function {_home(function)}.{function.__qualname__}", parts


def _globals_of(function: types.FunctionType) -> dict:
    """The values of the globals that a function names, and of what it names in modules of its pack."""
    names = set(left.names_in(function.__code__))
    found = {}
    for name in names & set(function.__globals__):
        value = function.__globals__[name]
        if isinstance(value, types.ModuleType):
            if value.__name__.partition(".")[0] not in _SETTLED:
                found |= {f"{name}.{own}": vars(value)[own] for own in names & set(vars(value))}
        elif not (isinstance(value, types.FunctionType | type) and is_settled(value)):
            found[name] = value
    return found


def _class_parts(own: type) -> list:
    """What another pack's class is made of. Node classes count by their functions: runs leave their inputs on them."""
    is_node = hasattr(own, "EXECUTE_NORMALIZED") or hasattr(own, "RETURN_TYPES")
    parts = {}
    for name, value in vars(own).items():
        value = getattr(value, "__func__", value)  # static and class methods
        if isinstance(value, property):
            value = [value.fget, value.fset]
        elif isinstance(value, types.FunctionType):
            pass
        elif is_node or name.startswith(("__", "_abc_")) or isinstance(value, _DESCRIPTORS):
            continue
        parts[name] = value
    return [list(own.__bases__), parts]


_DESCRIPTORS = (types.MemberDescriptorType, types.GetSetDescriptorType)


def _code(code: types.CodeType) -> list:
    """What a function does, wherever its source stands."""
    constants = [_code(part) if isinstance(part, types.CodeType) else part for part in code.co_consts]
    return [code.co_code, code.co_names, code.co_varnames, code.co_freevars, constants]


def _never_again() -> str:
    """A name that nothing has a second time."""
    return f"object {uuid.uuid4().hex}"
