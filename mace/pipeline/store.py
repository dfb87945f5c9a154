"""What is kept in memory between runs, in one budget; a host sets its limit and empties it."""

import itertools
import math
import threading
import weakref
from collections.abc import Hashable, Mapping
from dataclasses import fields, is_dataclass

from torch import Tensor, nn


class Budget:
    """Bytes that several stores share; what was not used for the longest time goes first, whichever store it is in."""

    def __init__(self, limit: float):
        self.limit = limit
        self.lock = threading.RLock()
        self._ticks = itertools.count()
        self._stores: weakref.WeakSet = weakref.WeakSet()

    def add(self, store) -> None:
        """Let a store take part."""
        self._stores.add(store)

    def tick(self) -> int:
        """A later moment than all before."""
        return next(self._ticks)

    @property
    def bytes(self) -> int:
        """Memory of what is kept."""
        return sum(store.bytes for store in self._stores)

    def trim(self) -> None:
        """Drop what is oldest until all fits; the newest entry of all stays even above the limit."""
        while self.bytes > self.limit and sum(map(len, self._stores)) > 1:
            min((store for store in self._stores if len(store)), key=lambda store: store.oldest).drop_oldest()

    def clear(self) -> None:
        """Forget everything."""
        with self.lock:
            for store in self._stores:
                store.clear()


BUDGET = Budget(math.inf)


def memory_of(value) -> int:
    """Bytes of the tensors and texts in a value: in containers and dataclasses too."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, Mapping):
        return memory_of(tuple(value.items()))
    if isinstance(value, tuple | list | set | frozenset):
        return sum(map(memory_of, value))
    if is_dataclass(value) and not isinstance(value, type):
        return sum(memory_of(getattr(value, own.name)) for own in fields(value))
    return 0


class LastResult:
    """The last result for each loaded network, with what it depends on besides; it goes with the network."""

    def __init__(self, budget: Budget = BUDGET):
        self._budget = budget
        # (key, result, bytes, when it was used last) by network.
        self._kept: weakref.WeakKeyDictionary[nn.Module, tuple] = weakref.WeakKeyDictionary()
        budget.add(self)

    def get(self, network: nn.Module, key: Hashable):
        """The network's result where it depends on `key`, else None."""
        with self._budget.lock:
            known, found, size, _ = self._kept.get(network, (None, None, 0, 0))
            if known != key:
                return None
            self._kept[network] = (known, found, size, self._budget.tick())
            return found

    def __contains__(self, network: nn.Module) -> bool:
        """Whether the network has a result, whatever it depends on."""
        return network in self._kept

    def put(self, network: nn.Module, key: Hashable, result) -> None:
        """Keep a result in place of the network's last one."""
        with self._budget.lock:
            self._kept[network] = (key, result, memory_of((key, result)), self._budget.tick())
            self._budget.trim()

    @property
    def bytes(self) -> int:
        """Memory of what is kept."""
        return sum(size for _, _, size, _ in list(self._kept.values()))

    @property
    def oldest(self) -> int:
        """When the entry that goes first was used last."""
        return min(used for *_, used in list(self._kept.values()))

    def drop_oldest(self) -> None:
        """Forget the least recently used."""
        del self._kept[min(list(self._kept.items()), key=lambda entry: entry[1][-1])[0]]

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()

    def __len__(self) -> int:
        return len(self._kept)
