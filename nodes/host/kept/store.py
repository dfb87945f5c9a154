"""What is kept in memory between runs, in one budget: concepts' moments, so that another lambda, strength or list is a
new solve only, and what is kept by its content, such as training images, embeddings and trained LoRAs.

The host does not see this memory. Its "free memory" empties it (see `forget_on_request`).
"""

import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator

import torch
from aiohttp import web
from comfy import model_management
from server import PromptServer
from torch import nn

from ....mace.concepts.concept import Concept
from ....mace.method.moments import ConceptMoments
from ....mace.method.span import RowMoments
from ....mace.pipeline.store import BUDGET, Budget

# A concept of SD1.x takes 9 MB of moments, of SDXL 67 MB; the host's outputs hold them too while a graph is in use.
SHARE_OF_MEMORY = 0.25


BUDGET.limit = int(model_management.get_total_memory(torch.device("cpu")) * SHARE_OF_MEMORY)


class ContentStore:
    """Values by content key (see `content`), up to `limit` bytes; the least recently used go first."""

    def __init__(self, limit: int, budget: Budget = BUDGET):
        self._limit, self._budget = min(limit, budget.limit), budget
        self._entries: OrderedDict[Hashable, tuple[object, int, int]] = OrderedDict()
        self.bytes = 0
        budget.add(self)

    def get(self, key: Hashable):
        """The value under this key, or None."""
        with self._budget.lock:
            if key not in self._entries:
                return None
            value, size, _ = self._entries[key]
            self._entries[key] = (value, size, self._budget.tick())
            self._entries.move_to_end(key)
            return value

    def put(self, key: Hashable, value, size: int) -> None:
        """Keep a value of `size` bytes; one alone is kept even above the limit."""
        with self._budget.lock:
            self.bytes += size - self._entries.pop(key, (None, 0, 0))[1]
            self._entries[key] = (value, size, self._budget.tick())
            while self.bytes > self._limit and len(self._entries) > 1:
                self.drop_oldest()
            self._budget.trim()

    def forget(self, key: Hashable) -> None:
        """Remove what is kept under this key."""
        with self._budget.lock:
            self.bytes -= self._entries.pop(key, (None, 0, 0))[1]

    @property
    def oldest(self) -> int:
        """When the entry that goes first was used last."""
        return next(iter(self._entries.values()))[2]

    def drop_oldest(self) -> None:
        """Forget the least recently used."""
        self.bytes -= self._entries.popitem(last=False)[1][1]

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._entries)


# Asked for moments that no store holds: (concept, pooled, own_words) -> moments or None. A program that has them from
# elsewhere, such as from other machines, adds itself while one text is read.
MomentSource = Callable[[Concept, bool, bool], ConceptMoments | RowMoments | None]
moment_sources: list[MomentSource] = []


class MomentStore:
    """Moments by text encoder and (the text's identity, concept, pooled, own_words); the least recently used go first,
    an encoder's go with it. What it does not hold `moment_sources` are asked for."""

    def __init__(self, limit: int, budget: Budget = BUDGET):
        self._limit, self._budget = min(limit, budget.limit), budget
        self._by_model: weakref.WeakKeyDictionary[nn.Module, OrderedDict] = weakref.WeakKeyDictionary()
        budget.add(self)

    def get(self, model: nn.Module, key: tuple) -> ConceptMoments | RowMoments | None:
        """The moments under this key, or None."""
        with self._budget.lock:
            entries = self._by_model.get(model)
            if entries is not None and key in entries:
                moments, _ = entries.pop(key)
                entries[key] = (moments, self._budget.tick())
                return moments
        return next((found for source in moment_sources if (found := source(*key[1:])) is not None), None)

    def put(self, model: nn.Module, key: tuple, moments: ConceptMoments | RowMoments) -> None:
        """Keep moments; other models' are dropped before this model's own."""
        with self._budget.lock:
            entries = self._by_model.setdefault(model, OrderedDict())
            entries[key] = (moments, self._budget.tick())
            for other in [m for m in self._by_model if m is not model]:
                if self.bytes <= self._limit:
                    break
                del self._by_model[other]
            while self.bytes > self._limit and len(entries) > 1:
                entries.popitem(last=False)
            self._budget.trim()

    def _filled(self) -> Iterator[OrderedDict]:
        return (entries for entries in list(self._by_model.values()) if entries)

    @property
    def bytes(self) -> int:
        """Memory of what is kept."""
        return sum(moments.bytes for entries in self._filled() for moments, _ in entries.values())

    @property
    def oldest(self) -> int:
        """When the entry that goes first was used last."""
        return min(next(iter(entries.values()))[1] for entries in self._filled())

    def drop_oldest(self) -> None:
        """Forget the least recently used."""
        min(self._filled(), key=lambda entries: next(iter(entries.values()))[1]).popitem(last=False)

    def clear(self) -> None:
        """Forget everything."""
        self._by_model.clear()

    def __len__(self) -> int:
        return sum(map(len, self._filled()))


@web.middleware
async def _forget(request: web.Request, handler) -> web.StreamResponse:
    answer = await handler(request)
    if request.method == "POST" and request.path in ("/free", "/api/free") and answer.status == 200:
        # The host has read the request, so its body is at hand.
        if (await request.json()).get("free_memory"):
            BUDGET.clear()
    return answer


def forget_on_request() -> None:
    """Forget everything where the host is asked to free memory; to be called before its server starts."""
    server = getattr(PromptServer, "instance", None)
    if server is not None and _forget not in server.app.middlewares and not server.app.frozen:
        server.app.middlewares.append(_forget)
