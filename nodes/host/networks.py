"""Networks that are not the host's own, placed by its model_management as its own are."""

from collections.abc import Callable, Sequence

import torch
from comfy import model_management
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from .model.memory import is_out_of_memory


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

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._patcher.load_device

    def loaded(self, memory: float = 0.0) -> tuple[nn.Module, torch.device]:
        """The network on its device, and the device. memory: bytes to make room for beside it."""
        model_management.load_models_gpu([self._patcher], memory_required=memory, force_full_load=True)
        # With --novram the host leaves the weights where they are, and moves them layer by layer in its own layers.
        self._patcher.model.to(self.device)
        return self._patcher.model, self.device

    def room_for(self, count: int, each: float) -> int:
        """Makes room for `count` items beside the network, and says how many it has room for, at least one.

        each: bytes that one item takes.
        """
        self.loaded(count * each)
        return max(1, min(count, int(model_management.get_free_memory(self.device) // each)))

    def run(self, together: "Batches", items: Tensor, work: Callable[[Tensor], Sequence], each: float) -> list:
        """`Batches.run` with as many at once as there is room for beside the network. each: bytes that one takes."""
        return together.run(items, work, self.room_for(min(len(items), together.most), each))

    def release(self) -> None:
        """Off the device again."""
        self._patcher.detach()


class Batches:
    """Work on many items at once: at most `most` together, fewer from where memory ran out on.

    One for all work of a kind in a run: a size that failed is not tried again.
    """

    def __init__(self, most: int):
        self.most = most

    def run(self, items: Tensor, work: Callable[[Tensor], Sequence], room: int | None = None) -> list:
        """What `work` gives for each of items [n, ...]. room: for how many there is room now, if known.

        `work` loads its network itself: where not even one item fits, all models make way once, that network too.
        Raises the host's interrupt between batches, and its out-of-memory error where one alone does not fit an empty
        device.
        """
        results: list = []
        emptied = False
        while len(results) < len(items):
            model_management.throw_exception_if_processing_interrupted()
            together = min(self.most, room or self.most)
            try:
                results += work(items[len(results) : len(results) + together])
                continue
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                if together == 1 and emptied:
                    raise
            # Behind the except block, whose traceback holds the tensors of the batch that failed.
            if together == 1:
                model_management.free_memory(1e30, model_management.get_torch_device())
                emptied = True
            self.most = max(1, min(together, len(items) - len(results)) // 2)
            model_management.soft_empty_cache()
        return results
