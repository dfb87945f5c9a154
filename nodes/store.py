"""Bounded stores: of concepts' moments, so that another lambda, strength or list is a new solve only; and of what is
kept by its content, such as training images and trained LoRAs."""

import weakref
from collections import OrderedDict
from collections.abc import Hashable

from torch import nn

from ..mace.moments import ConceptMoments

# A concept of SD1.x takes 9 MB, of SDXL 67 MB; the host's own outputs hold them too while a graph is in use.
SHARE_OF_MEMORY = 0.25


class MomentStore:
    """Moments by text encoder and key; the least recently used go first, an encoder's go with it."""

    def __init__(self, limit: int):
        self._limit = limit
        self._by_model: weakref.WeakKeyDictionary[nn.Module, OrderedDict] = weakref.WeakKeyDictionary()

    def get(self, model: nn.Module, key: Hashable) -> ConceptMoments | None:
        """The moments under this key, or None."""
        entries = self._by_model.get(model)
        if entries is None or key not in entries:
            return None
        entries.move_to_end(key)
        return entries[key]

    def put(self, model: nn.Module, key: Hashable, moments: ConceptMoments) -> None:
        """Keep moments; other models' are dropped before this model's own."""
        entries = self._by_model.setdefault(model, OrderedDict())
        entries[key] = moments
        for other in [m for m in self._by_model if m is not model]:
            if self.bytes <= self._limit:
                return
            del self._by_model[other]
        while self.bytes > self._limit and len(entries) > 1:
            entries.popitem(last=False)

    @property
    def bytes(self) -> int:
        """Memory of what is kept."""
        return sum(m.bytes for entries in self._by_model.values() for m in entries.values())


class ContentStore:
    """Values by content key (see `content`), up to `limit` bytes; the least recently used go first."""

    def __init__(self, limit: int):
        self._limit = limit
        self._entries: OrderedDict[Hashable, tuple[object, int]] = OrderedDict()
        self.bytes = 0

    def get(self, key: Hashable):
        """The value under this key, or None."""
        if key not in self._entries:
            return None
        self._entries.move_to_end(key)
        return self._entries[key][0]

    def put(self, key: Hashable, value, size: int) -> None:
        """Keep a value of `size` bytes; one alone is kept even above the limit."""
        self.bytes += size - self._entries.pop(key, (None, 0))[1]
        self._entries[key] = (value, size)
        while self.bytes > self._limit and len(self._entries) > 1:
            self.bytes -= self._entries.popitem(last=False)[1][1]

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._entries)
