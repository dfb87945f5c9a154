"""What is kept in memory between runs."""

import weakref
from collections.abc import Hashable

from torch import nn


class LastResult:
    """The last result for each loaded network, with what it depends on besides; it goes with the network."""

    def __init__(self):
        self._kept: weakref.WeakKeyDictionary[nn.Module, tuple] = weakref.WeakKeyDictionary()

    def get(self, network: nn.Module, key: Hashable):
        """The network's result where it depends on `key`, else None."""
        known, found = self._kept.get(network, (None, None))
        return found if known == key else None

    def put(self, network: nn.Module, key: Hashable, result) -> None:
        """Keep a result in place of the network's last one."""
        self._kept[network] = (key, result)
