"""Keys by content: what a result depends on, as a hash, so that a store can tell what has to be computed again."""

import hashlib
import weakref
from collections.abc import Mapping

import comfy.model_base
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ..model.bare import bare_network
from ..model.fp8 import Wide
from ..model.predict import uncompiled
from ..model.sampling import numbers_of
from ..model.unet import ATTACHMENT, BASE_MODEL, REFINED_BY, weights_sha256
from .modules import hooks_of, settings_of
from .values import Feeder, is_settled

_weights: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()
_encoders: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()
# What a MODEL computes with besides its weights, their patches and its options.
MORE = ("object_patches", "weight_wrapper_patches", "wrappers", "callbacks", "injections", "hook_patches")
MORE += ("additional_models", "forced_hooks")
# What a LoRA depends on of a refinement's record.
HOW_REFINED = ("stage", "settings", "clip_layer", "strength", "projections", "pooled_text", "own_words")
# Parts that other nodes put into a MODEL are read anew each time, up to so many bytes.
MOST_READ = 256 << 20


def content_sha256(*parts) -> str:
    """SHA-256 (hex) over values, tensors (dtype, shape and bytes), containers, and objects of them.

    Functions and objects count by what they hold (see `values`), a MODEL and a module by what they compute with. What
    has no such value (a stream, a generator) is never the same again.
    """
    return _digest(parts, ())


def _digest(parts, inside: tuple) -> str:
    came_up: set[int] = set()
    known = None
    # A variable may be told before all functions that assign it have come up. Tensors, which take long, are read last.
    while len(came_up) != known:
        known = len(came_up)
        Feeder(None, _known_by_itself, came_up).feed(parts, inside)
    digest = hashlib.sha256()
    Feeder(digest, _known, came_up).feed(parts, inside)
    return digest.hexdigest()


def _known_by_itself(value, inside: tuple) -> tuple[str, tuple | list] | None:
    """As `_known`, without a MODEL: it has a key of its own."""
    return ("model", ()) if isinstance(value, ModelPatcher) else _known(value, inside)


def _known(value, inside: tuple) -> tuple[str, list] | None:
    """(kind, parts) of what is the host's own."""
    if isinstance(value, ModelPatcher):
        return "model", [_model_sha256(value, (), inside)]
    if isinstance(value, comfy.model_base.BaseModel) and isinstance(value.current_patcher, ModelPatcher):
        return f"module {type(value).__qualname__}", [_network_sha256(value.current_patcher)]
    if isinstance(value, nn.Module) and sum(tensor.nbytes for tensor in value.state_dict().values()) > MOST_READ:
        more = [[name, *settings_of(part)] for name, part in value.named_modules() if settings_of(part)]
        return f"module {type(value).__qualname__}", [module_sha256(value), *more]
    return None


def _network_sha256(model) -> str:
    """SHA-256 of a MODEL's unpatched weights; read once for every loaded model."""
    if model.model not in _weights:
        _weights[model.model] = weights_sha256(model)
    return _weights[model.model]


def model_sha256(model) -> str:
    """SHA-256 (hex) of all that a MODEL computes with: weights, patches, options, replaced parts, wrappers and hooks.

    The unpatched weights are read once for every loaded model.
    """
    return _model_sha256(model, ())


def _model_sha256(model, without: tuple[Tensor, ...], inside: tuple = ()) -> str:
    """As `model_sha256`, without the differences `without` among the patches. inside: see `values.Feeder`."""
    # What is compiled is another with every compiling and every use; that it is, its options say.
    compiled, model = model, uncompiled(model)
    network = model.model
    left_out = {id(tensor) for tensor in without}
    patches = {
        key: kept
        for key, own in model.patches.items()
        if (kept := [tuple(patch) for patch in own if not _is_difference(patch[1], left_out)])
    }
    with bare_network(model):
        # The same weights can be told to predict another way, or to compute in another dtype.
        sampling, form = (model.get_model_object(name) for name in ("model_sampling", "latent_format"))
        how = [type(network), network.model_type, network.concat_keys, model.model_dtype(), network.manual_cast_dtype]
        how += [type(sampling).__mro__[1:], sampling.state_dict(), numbers_of(sampling), type(form), vars(form)]
        # A pack's own sampling: what it does otherwise than the classes it is made of.
        if not is_settled(type(sampling)) and (own := {k: v for k, v in vars(type(sampling)).items() if callable(v)}):
            how += [own]
        hung = _hung_on(network)
        how += [hung] if hung else []
        parts = (_network_sha256(model), patches, model.model_options, _more_of(model), how)
        return _digest(parts, (*inside, id(compiled)))


def _more_of(patcher) -> dict:
    # Containers that hold nothing are as good as none: nodes leave them behind.
    more = {name: _filled(getattr(patcher, name, None)) for name in MORE}
    # Wide layers hold the same weights.
    parts = more["object_patches"] or {}
    more["object_patches"] = {name: part for name, part in parts.items() if not isinstance(part, Wide)}
    return {name: part for name, part in more.items() if part}


def _hung_on(network: nn.Module) -> list:
    """What others hung on a network itself, past its patcher."""
    return [[name, *hooks] for name, part in network.named_modules() if (hooks := hooks_of(part))]


def _is_read(name: str) -> bool:
    """Whether what a UNet reads depends on a weight of a text encoder, by its name.

    UNets read the pooled text of CLIP-G alone. Files of other encoders lack what projects it, and the host leaves
    there what the memory held before.
    """
    return "text_projection" not in name or name.startswith("clip_g.")


def text_sha256(clip) -> str:
    """SHA-256 (hex) of all that a CLIP's encoders compute with but their output layer (clip skip): weights, patches,
    options, and what other packs put into them.

    Embeddings would differ with the device. The unpatched weights are read once for every loaded encoder.
    """
    module, patcher = clip.cond_stage_model, clip.patcher
    if module not in _encoders:
        _encoders[module] = weights_sha256(patcher, None, _is_read)
    with bare_network(patcher):
        parts = (patcher.patches, patcher.model_options, _more_of(patcher), type(module), _hung_on(module))
        return content_sha256(_encoders[module], *parts)


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
    return model.get_attachment(BASE_MODEL) or model


def training_key(model) -> str:
    """What a LoRA trained on a MODEL depends on: all of it, and how it was refined in place of what that changed.

    The concepts of the refinement are left out, and so are the weights that were taken for them, by auto or by a
    preset's weight that grows with the list, and what the prior left out for them: a LoRA stays with its concept when
    others join the list, though the transform it was trained on then differs a little from the new one. What stands
    before, between and behind refinements counts by value, and so does the prior as it was made.
    """
    base = base_of(model)
    before = len(base.get_attachment(ATTACHMENT) or ())
    stages = []
    for stage in (model.get_attachment(ATTACHMENT) or ())[before:]:
        how = {name: stage.get(name) for name in HOW_REFINED}
        stages.append([how, (stage.get("prior") or {}).get("sha256")])
    return content_sha256(_model_sha256(model, model.get_attachment(REFINED_BY) or ()), stages)
