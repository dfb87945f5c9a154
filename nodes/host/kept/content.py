"""Keys by content: what a result depends on, as a hash, so that a store can tell what has to be computed again."""

import dataclasses
import enum
import functools
import hashlib
import types
import uuid
import weakref
from collections.abc import Mapping

import numpy as np
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ..model.fp8 import Wide
from ..model.sampling import numbers_of
from ..model.unet import ATTACHMENT, BASE, REFINED, tensor_bytes, weights_sha256

_weights: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()
_unknown: weakref.WeakKeyDictionary[object, str] = weakref.WeakKeyDictionary()
# What is nested deeper has no value of its own that could be told.
DEEPEST = 60
# What a MODEL computes with besides its weights, their patches and its options.
MORE = ("object_patches", "weight_wrapper_patches", "wrappers", "callbacks", "injections", "hook_patches")
MORE += ("additional_models", "forced_hooks")


def content_sha256(*parts) -> str:
    """SHA-256 (hex) over values, tensors (dtype, shape and bytes), containers, and objects of them.

    Functions count by their code, their defaults and what they close over; objects of Python classes by their class
    and attributes; a MODEL and a module by what they compute with. What has no such value (a lock, a stream) counts by
    its identity: it is equal to itself alone, as long as it lives.
    """
    digest = hashlib.sha256()
    _feed(digest, parts, ())
    return digest.hexdigest()


def _feed(digest, value, inside: tuple) -> None:
    """inside: the ids of the objects that hold this one; one that holds itself counts by how far up it is."""
    if isinstance(value, Tensor):
        for raw in tensor_bytes(value):
            digest.update(raw)
        return
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | torch.dtype | torch.device):
        digest.update(f"{type(value).__name__} {value!r};".encode(errors="surrogatepass"))
        return
    if isinstance(value, enum.Enum | types.BuiltinFunctionType | types.ModuleType | range | torch.Size):
        digest.update(f"{type(value).__qualname__} {getattr(value, '__module__', '')} {_told(value)};".encode())
        return
    if id(value) in inside:
        digest.update(f"above {len(inside) - inside.index(id(value))};".encode())
        return
    if len(inside) > DEEPEST:
        digest.update(_identity(value).encode())
        return
    kind, parts = _parts(value)
    digest.update(f"{kind};".encode())
    inside = (*inside, id(value))
    if isinstance(parts, Mapping):
        for name in sorted(parts, key=repr):
            _feed(digest, name, inside)
            _feed(digest, parts[name], inside)
    else:
        for part in parts:
            _feed(digest, part, inside)


def _told(value) -> str:
    """The name of a value that its name says everything of."""
    return getattr(value, "__qualname__", None) or getattr(value, "__name__", None) or repr(value)


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
        return f"class {value.__module__}.{value.__qualname__}", ()
    if isinstance(value, types.FunctionType):
        cells = [_cell(cell) for cell in value.__closure__ or ()]
        return f"function {value.__module__}.{value.__qualname__}", [
            _code(value.__code__),
            value.__defaults__,
            value.__kwdefaults__,
            cells,
        ]
    if isinstance(value, types.MethodType):
        return "method", [value.__func__, value.__self__]
    if isinstance(value, functools.partial):
        return "partial", [value.func, value.args, value.keywords]
    if isinstance(value, ModelPatcher):
        return "model", [model_sha256(value)]
    if isinstance(value, nn.Module):
        return f"module {type(value).__qualname__}", [module_sha256(value)]
    if hasattr(value, "weights") and hasattr(value, "loaded_keys"):  # the host's weight adapters (LoRA and others)
        return type(value).__qualname__, [value.weights]
    name = f"{type(value).__module__}.{type(value).__qualname__}"
    if dataclasses.is_dataclass(value):
        return name, {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    # Classes written in Python keep what they hold where it can be seen; a subclass of anything else may not.
    if hasattr(value, "__dict__") and all(base.__flags__ & _HEAP for base in type(value).__mro__[:-1]):
        slots = {slot for base in type(value).__mro__ for slot in _slots(base) if hasattr(value, slot)}
        return name, {**{slot: getattr(value, slot) for slot in slots}, **vars(value)}
    if isinstance(value, Mapping):
        return name, [dict(value), vars(value)]
    return _identity(value), ()


# Py_TPFLAGS_HEAPTYPE: the class was made while running, as those of Python code are.
_HEAP = 1 << 9


def _slots(base: type) -> tuple[str, ...]:
    slots = base.__dict__.get("__slots__", ())
    return tuple(name for name in ((slots,) if isinstance(slots, str) else slots) if not name.startswith("__"))


def _cell(cell):
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _code(code: types.CodeType) -> list:
    """What a function does, wherever its source stands."""
    constants = [_code(part) if isinstance(part, types.CodeType) else part for part in code.co_consts]
    return [code.co_code, code.co_names, code.co_varnames, code.co_freevars, constants]


def _identity(value) -> str:
    """A name of an object that no other object gets, while it lives or after."""
    try:
        return _unknown.setdefault(value, f"object {uuid.uuid4().hex};")
    except TypeError:  # what cannot be referred to weakly or hashed is never the same again
        return f"object {uuid.uuid4().hex};"


def model_sha256(model) -> str:
    """SHA-256 (hex) of all that a MODEL computes with: weights, patches, options, replaced parts, wrappers and hooks.

    The unpatched weights are read once for every loaded model.
    """
    return _model_sha256(model, ())


def _model_sha256(model, without: tuple[Tensor, ...]) -> str:
    """As `model_sha256`, without the differences `without` among the patches."""
    network = model.model
    if network not in _weights:
        _weights[network] = weights_sha256(model)
    left_out = {id(tensor) for tensor in without}
    patches = {
        key: kept
        for key, own in model.patches.items()
        if (kept := [tuple(patch) for patch in own if not _is_difference(patch[1], left_out)])
    }
    # Containers that hold nothing are as good as none: nodes leave them behind.
    more = {name: _filled(getattr(model, name, None)) for name in MORE}
    # Wide layers hold the same weights.
    parts = more["object_patches"] or {}
    more["object_patches"] = {name: part for name, part in parts.items() if not isinstance(part, Wide)}
    # The same weights can be told to predict another way, or to compute in another dtype.
    sampling, form = (model.get_model_object(name) for name in ("model_sampling", "latent_format"))
    how = [type(network), network.model_type, network.concat_keys, model.model_dtype(), network.manual_cast_dtype]
    how += [type(sampling).__mro__[1:], sampling.state_dict(), numbers_of(sampling), type(form), vars(form)]
    return content_sha256(_weights[network], patches, model.model_options, {k: v for k, v in more.items() if v}, how)


def _is_difference(change, tensors: set[int]) -> bool:
    return isinstance(change, tuple) and change[0] == "diff" and id(change[1][0]) in tensors


def _filled(value):
    """A container without what is empty in it."""
    if isinstance(value, Mapping):
        return {name: part for name, own in value.items() if (part := _filled(own)) not in (None, {}, [])}
    return value


def module_sha256(module: nn.Module) -> str:
    """SHA-256 (hex) of a module's parameters, such as a VAE's; read once for every module."""
    if module not in _weights:
        _weights[module] = content_sha256(dict(module.state_dict()))
    return _weights[module]


def base_of(model):
    """The MODEL that refinements were made from, or the MODEL itself."""
    return model.get_attachment(BASE) or model


def training_key(model) -> str:
    """What a LoRA trained on a MODEL depends on: all of it, and how it was refined in place of what that changed.

    The concepts of the refinement are left out, and so are the weights that auto took for them: a LoRA stays with its
    concept when others join the list, though the transform it was trained on then differs a little from the new one.
    What stands before, between and behind refinements counts by value.
    """
    base = base_of(model)
    before = len(base.get_attachment(ATTACHMENT) or ())
    stages = []
    for stage in (model.get_attachment(ATTACHMENT) or ())[before:]:
        prior = stage.get("prior") or {}
        how = [stage.get(name) for name in ("stage", "settings", "clip_layer", "strength", "projections")]
        # As it was for those without, so that what is kept stays found.
        how += ["own_words"] if stage.get("own_words") else []
        stages.append([how, prior.get("source"), prior.get("preserved")])
    return content_sha256(_model_sha256(model, model.get_attachment(REFINED) or ()), stages)


def refinement_digest(refinement) -> str:
    """SHA-256 (hex) of what a Refinement does to the weights, by which LoRAs know theirs; "" for None."""
    if refinement is None:
        return ""
    pooled = () if refinement.pooled_delta is None else (refinement.pooled_delta,)
    return content_sha256(refinement.transform_delta, refinement.strength, refinement.projections, *pooled)
