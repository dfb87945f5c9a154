"""What other nodes set on a MODEL and a checkpoint cannot hold, in words."""

from collections.abc import Mapping

from .fp8 import Wide

# What a file says in words of its own (see `sampling`), and switches that only mean something beside a function.
_SAID = ("model_sampling", "latent_format")
_SWITCHES = ("disable_cfg1_optimization",)
_PARTS = ("wrappers", "callbacks", "injections", "hook_patches", "forced_hooks", "additional_models")
_PARTS += ("weight_wrapper_patches",)
DEEPEST = 6


def unsaved(model) -> list[str]:
    """What no file holds of a MODEL: functions in its sampling and attention, replaced parts, wrappers, hooks.

    Each with what made it, where its name says so: "sampler_cfg_function (RescaleCFG)".
    """
    found = {
        name: part for name, part in model.object_patches.items() if name not in _SAID and not isinstance(part, Wide)
    }
    options = dict(model.model_options)
    inner = dict(options.pop("transformer_options", None) or {})
    for group in ("patches", "patches_replace"):
        found |= {f"{group} {name}": part for name, part in (inner.pop(group, None) or {}).items()}
    found |= options | inner
    found |= {name: getattr(model, name, None) for name in _PARTS}
    told = []
    for name, part in found.items():
        if name in _SWITCHES or not _holds_something(part, 0):
            continue
        makers = sorted(_makers(part, 0))
        told.append(f"{name} ({', '.join(makers)})" if makers else name)
    return told


def _holds_something(value, depth: int) -> bool:
    if isinstance(value, Mapping | list | tuple | set) and depth < DEEPEST:
        parts = value.values() if isinstance(value, Mapping) else value
        return any(_holds_something(part, depth + 1) for part in parts)
    return value is not None and value is not False


def _makers(value, depth: int) -> set[str]:
    """The names of the classes and functions that made the functions and objects in a container."""
    if isinstance(value, Mapping | list | tuple | set):
        parts = value.values() if isinstance(value, Mapping) else value
        return set().union(*(_makers(part, depth + 1) for part in parts)) if depth < DEEPEST else set()
    if value is None or isinstance(value, bool | int | float | str):
        return set()
    name = getattr(value, "__qualname__", None) or type(value).__qualname__
    # What a node makes in its own method is RescaleCFG.patch.<locals>.rescale_cfg.
    return {name.split(".")[0]}
