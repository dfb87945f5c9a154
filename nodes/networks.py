"""Networks that are not the host's own, placed by its model_management as its own are."""

from collections.abc import Callable, Sequence

import torch
from comfy import model_management
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn


class Held(nn.Module):
    """A network as a part, since the host marks the device on the module, where some have it read-only."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net


class Network:
    """A network where the host has room for it."""

    def __init__(self, network: nn.Module):
        device = model_management.get_torch_device()
        self.module = network
        self._patcher = ModelPatcher(network.eval(), device, model_management.unet_offload_device())

    def loaded(self) -> tuple[nn.Module, torch.device]:
        """The network on its device, and the device."""
        model_management.load_models_gpu([self._patcher], force_full_load=True)
        return self._patcher.model, self._patcher.load_device

    def release(self) -> None:
        """Off the device again."""
        self._patcher.detach()


def in_batches(items: Tensor, most: int, run: Callable[[Tensor], Sequence]) -> list:
    """What `run` gives for each of items [n, ...], at most `most` together; fewer where memory runs out.

    Raises the host's interrupt between batches, and its out-of-memory error where one alone does not fit.
    """
    results: list = []
    while len(results) < len(items):
        model_management.throw_exception_if_processing_interrupted()
        try:
            results += run(items[len(results) : len(results) + most])
        except Exception as error:
            model_management.raise_non_oom(error)
            if most == 1:
                raise
            most = most // 2
            model_management.soft_empty_cache()
    return results
