"""What the stages ask of a host, as protocols: each method is there because a stage calls it."""

from collections.abc import Callable, Hashable, Sequence
from typing import Protocol

from torch import Tensor, nn


class Text(Protocol):
    """The text of a prompt as a model reads it: rows of d numbers, and one pooled vector where the model reads one."""

    @property
    def module(self) -> nn.Module:
        """The text encoder. What is kept of it goes when it goes."""
        ...

    @property
    def identity(self) -> Hashable:
        """What the rows depend on besides the module: patches, clip skip, options of the tokenizers."""
        ...

    @property
    def fingerprint(self) -> Tensor:
        """See `mace.method.prior.probe`."""
        ...

    def fitting(self, texts: Sequence[str], as_prompt: Callable[[str], str]) -> list[str]:
        """The texts whose prompts can be read."""
        ...

    def gram(self, prompts: Sequence[str], step: Callable[[int], None]) -> tuple[Tensor, Tensor | None]:
        """(sum e e^T over all rows of the prompts [d, d], the same over their pooled vectors [c, c]), float64.

        None in place of the second where no pooled vector is read. step(prompts): progress.
        """
        ...


class Progress(Protocol):
    """Where a run tells how far it is."""

    def begin(self, total: int) -> Callable[[int], None]:
        """A new bar of `total` steps; calling what comes back advances it by so many."""
        ...
