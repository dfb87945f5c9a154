"""What a network holds besides its tensors: the settings of its parts, and what others hang on them."""

import types
from collections.abc import Iterator

from torch import Tensor, nn

# What the host keeps on modules while they are loaded, and what every module has.
_OF_THE_HOST = (
    "comfy_",
    "prev_comfy_",
    "weight_function",
    "bias_function",
    "current_patcher",
    "training",
    "call_super_init",
)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_PLAIN = nn.Module()


def module_parts(module: nn.Module) -> Iterator:
    """What a module computes with: its tensors, then of every part its class, its settings and its hooks."""
    yield dict(module.state_dict())
    for name, part in module.named_modules():
        kind = type(part)
        yield [name, kind, *settings_of(part)]


def settings_of(module: nn.Module) -> list:
    """A module's attributes besides tensors and parts, and its hooks; empty where it has none."""
    usual = vars(_PLAIN)
    own = {
        name: value
        for name, value in vars(module).items()
        if name not in usual
        and not name.startswith(_OF_THE_HOST)
        and not name.endswith(("_comfy_model_dtype", "_lowvram_function"))
        and not isinstance(value, Tensor | nn.Module)
        and not _is_own(module, name, value)
    }
    return [part for part in (own, *hooks_of(module)) if part]


def hooks_of(module: nn.Module) -> list:
    """A module's forward hooks, and functions put over its own methods."""
    hooks = [list(getattr(module, name).values()) for name in _HOOKS]
    over = {
        # Of the module's own methods the function alone: what the module holds counts where it is asked for.
        name: value.__func__ if isinstance(value, types.MethodType) and value.__self__ is module else value
        for name, value in vars(module).items()
        if callable(value)
        and not isinstance(value, nn.Module)
        and isinstance(getattr(type(module), name, None), types.FunctionType)
        and not _is_own(module, name, value)
    }
    return [part for part in (*hooks, over) if part]


def _is_own(module: nn.Module, name: str, value) -> bool:
    """Whether a module's own method lies among its attributes: what was put over one and taken off may leave it."""
    own = isinstance(value, types.MethodType) and value.__self__ is module
    return own and value.__func__ is getattr(type(module), name, None)
