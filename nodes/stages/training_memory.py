"""Training within the device's memory: as it is, or with the model's blocks computed a second time."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from comfy import model_management

from ..host.model.memory import how_many_fit, is_out_of_memory, step_aside, suppress_out_of_memory
from ..host.model.recompute import recomputed_blocks
from ..host.progress import listed


class MemoryMode:
    """How the steps of a run keep what their gradients need.

    recompute: blocks are computed again in the backward pass (save_memory); it turns itself on where one concept does
    not fit without, and says so in `lines`.
    """

    def __init__(self, recompute: bool, lines: list[str]):
        self._recompute, self._lines = recompute, lines

    def on(self, copy) -> AbstractContextManager:
        """The mode, on a model that is trained."""
        return recomputed_blocks(copy.model) if self._recompute else nullcontext()

    def run_together(self, copy, run: Callable):
        """What run() gives, of several concepts; None where memory did not hold it."""
        with suppress_out_of_memory(), self.on(copy):
            return run()
        model_management.soft_empty_cache()
        return None

    def run_alone(self, copy, name: str, run: Callable):
        """What run() gives, of one concept; None where memory did not hold it and blocks are recomputed from now on.

        Raises RuntimeError, naming the concept, where they were already.
        """
        try:
            with self.on(copy):
                return run()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if self._recompute:
                raise RuntimeError(
                    f"out of memory while training {name!r} alone, with save_memory on: use smaller images, or "
                    "close other programs"
                ) from error
        model_management.soft_empty_cache()
        self._save()
        return None

    def how_many(self, device: torch.device, each: int, most: int) -> int:
        """How many concepts of `each` bytes are to train side by side, from 1 to `most`.

        0 where not even one fits and blocks are recomputed from now on, with which one takes less.
        """
        fitting = how_many_fit(device, each, most)
        if not fitting and self._recompute:
            self._lines.append("one concept takes more memory than is free: steps may take long")
            return 1
        if not fitting:
            # Where the system lends a device the computer's memory no error would say so.
            self._save()
        return fitting

    def _save(self) -> None:
        self._recompute = True
        self._lines.append("one concept does not fit without save_memory: it is on")


def encode_beside(copy, names: Sequence[str], encode: Callable):
    """What encode() gives, of concepts' prompts; where memory does not hold it beside the copy, the copy makes way.

    Raises RuntimeError, naming the concepts, where it does not fit an empty device either.
    """
    with suppress_out_of_memory():
        return encode()
    step_aside(copy, math.inf)
    try:
        return encode()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise RuntimeError(
            f"out of memory while encoding the prompts of {listed(names)}: close other programs, or load the text "
            "encoder with Load CLIP and its device set to cpu"
        ) from error
