"""Keys by content: what a result depends on, as a hash, so that a store can tell what has to be computed again."""

import dataclasses
import hashlib
import uuid
import weakref
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .unet import ATTACHMENT, BASE, weights_sha256

_weights: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()
_unknown: weakref.WeakKeyDictionary[object, str] = weakref.WeakKeyDictionary()


def content_sha256(*parts) -> str:
    """SHA-256 (hex) over values, tensors (dtype, shape and bytes), containers and dataclasses of them.

    The host's weight adapters count by their weights, anything else by its identity: it is equal to itself alone, as
    long as it lives.
    """
    digest = hashlib.sha256()
    _feed(digest, parts)
    return digest.hexdigest()


def _feed(digest, value) -> None:
    if isinstance(value, Tensor):
        raw = value.to("cpu").detach().contiguous()
        digest.update(f"tensor {raw.dtype} {tuple(raw.shape)};".encode())
        digest.update(raw.reshape(-1).view(torch.uint8).numpy())
    elif value is None or isinstance(value, bool | int | float | str | bytes | torch.dtype | torch.device):
        digest.update(f"{type(value).__name__} {value!r};".encode())
    elif isinstance(value, Mapping):
        digest.update(f"map {len(value)};".encode())
        for name in sorted(value, key=repr):
            _feed(digest, name)
            _feed(digest, value[name])
    elif isinstance(value, list | tuple | set | frozenset):
        items = sorted(value, key=repr) if isinstance(value, set | frozenset) else value
        digest.update(f"list {len(items)};".encode())
        for item in items:
            _feed(digest, item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        digest.update(f"{type(value).__qualname__};".encode())
        _feed(digest, {f.name: getattr(value, f.name) for f in dataclasses.fields(value)})
    elif hasattr(value, "weights") and hasattr(value, "loaded_keys"):  # the host's weight adapters (LoRA and others)
        digest.update(f"{type(value).__qualname__};".encode())
        _feed(digest, value.weights)
    else:
        digest.update(_identity(value).encode())


def _identity(value) -> str:
    """A name of an object that no other object gets, while it lives or after."""
    try:
        return _unknown.setdefault(value, f"object {uuid.uuid4().hex};")
    except TypeError:  # what cannot be referred to weakly or hashed is never the same again
        return f"object {uuid.uuid4().hex};"


def model_sha256(model) -> str:
    """SHA-256 (hex) of all that a MODEL computes with: weights, patches, options and replaced parts.

    The unpatched weights are read once for every loaded model.
    """
    network = model.model
    if network not in _weights:
        _weights[network] = weights_sha256(model)
    patches = {key: [tuple(patch) for patch in model.patches[key]] for key in model.patches}
    return content_sha256(_weights[network], patches, model.model_options, model.object_patches)


def module_sha256(module: nn.Module) -> str:
    """SHA-256 (hex) of a module's parameters, such as a VAE's; read once for every module."""
    if module not in _weights:
        _weights[module] = content_sha256(dict(module.state_dict()))
    return _weights[module]


def base_of(model):
    """The MODEL that refinements were made from, or the MODEL itself."""
    return model.get_attachment(BASE) or model


def training_key(model) -> str:
    """What a LoRA trained on a MODEL depends on: the model before refinement, and how it was refined.

    The concepts of the refinement are left out, and so are the weights that auto took for them: a LoRA stays with its
    concept when others join the list, though the transform it was trained on then differs a little from the new one.
    """
    base = base_of(model)
    before = len(base.get_attachment(ATTACHMENT) or ())
    stages = []
    for stage in (model.get_attachment(ATTACHMENT) or ())[before:]:
        prior = stage["prior"] or {}
        how = [stage[name] for name in ("settings", "clip_layer", "strength", "projections")]
        stages.append([how, prior.get("source"), prior.get("preserved")])
    return content_sha256(model_sha256(base), stages)


def refinement_digest(refinement) -> str:
    """SHA-256 (hex) of what a Refinement does to the weights, by which LoRAs know theirs; "" for None."""
    if refinement is None:
        return ""
    return content_sha256(refinement.transform_delta, refinement.strength, refinement.projections)
