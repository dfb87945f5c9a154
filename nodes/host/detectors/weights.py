"""Weights of detectors and segmenters as they are published: .safetensors, or .pth without running what is in it."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from .. import files


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name, without a training framework's wrapping ("model", "module.").

    Raises ValueError for a file that cannot be read or holds more than tensors.
    """
    if path.suffix == ".safetensors":
        state: object = files.read_safetensors(str(path), path.name)[0]
    else:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # for damage, PyTorch's reader raises whatever it met
            reason = str(error).strip().split("\n")[0] or type(error).__name__
            raise ValueError(f"{path.name} cannot be read as weights: {reason}") from error
    for wrapping in ("model", "state_dict"):
        if isinstance(state, Mapping) and isinstance(state.get(wrapping), Mapping):
            state = state[wrapping]
    if not isinstance(state, Mapping):
        raise ValueError(f"{path.name} holds no weights by name")
    return {key.removeprefix("module."): value for key, value in state.items() if isinstance(value, Tensor)}


def fill_network(net: nn.Module, state: Mapping[str, Tensor], name: str, what: str) -> None:
    """Put all weights into a network, in its own number format.

    Keys that the network does not have are passed over. Raises ValueError, with the file's `name`, for a weight that is
    missing under every name it has, of another shape, or not finite.
    """
    try:
        missing = net.load_state_dict(state, strict=False).missing_keys
    except RuntimeError as error:
        raise ValueError(f"{name} does not fit {what}: {str(error).strip().splitlines()[-1].strip()}") from error
    own, values = dict(net.named_parameters(remove_duplicate=False)), net.state_dict()
    # A file without doubles has a shared weight under one of its names alone.
    given = {id(own[key]) for key in state if key in own}
    # What is no number of its own, such as a table of places, is as it was made.
    numbers = [key for key in missing if values[key].is_floating_point()]
    lacking = [key for key in numbers if key not in own or id(own[key]) not in given]
    if lacking:
        raise ValueError(f"{name} lacks weights of {what}: {lacking[0]} and {len(lacking) - 1} others")
    broken = [key for key, value in values.items() if not torch.isfinite(value).all()]
    if broken:
        raise ValueError(
            f"{name} holds values that are not finite (NaN or infinity), in {broken[0]}: get the file anew"
        )
