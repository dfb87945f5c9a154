"""Sums over a list of concepts, and lists too long for memory.

The closed forms see a list by sum_i A_i, sum_i G_i and sum_i S_i, and single concepts only where strengths differ and
where a LoRA stands behind them (A_i S_i of Eq. 7). So of a long list the sums stay in memory, in float64, and each
concept's own moments lie on the disk in float32. A_i - G_i is kept in A_i's place: most of the two is alike, and a
solve would see the rounding of what cancels. While no strength is 0, no system is built from rounded moments; where
strengths differ, what is solved for is rounded, and the change of the weights with it (1e-4 of it, on the demo model).
"""

import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from operator import attrgetter, is_
from pathlib import Path

import torch
from torch import Tensor

from .moments import ConceptMoments, unpack


def change_of(moments) -> Tensor:
    """A_i - G_i of a concept, [d, d] float64."""
    return moments.change if isinstance(moments, StoredMoments) else moments.cross - unpack(moments.paired)


PARTS = (change_of, attrgetter("paired"), attrgetter("total"))


class StoredMoments:
    """One concept of `StreamedMoments`: as ConceptMoments, each sum read from the disk when it is asked for."""

    bytes = 0  # in memory

    def __init__(self, owner: "StreamedMoments", place: int, of: ConceptMoments):
        self.owner, self._place = owner, place
        self.pairs, self.prompts, self.size = of.pairs, of.prompts, of.size

    @property
    def change(self) -> Tensor:
        """A_i - G_i, [d, d] float64 of float32 precision."""
        return self.owner.read(self._place, 0)

    @property
    def cross(self) -> Tensor:
        """A_i, [d, d]."""
        return self.change + unpack(self.paired)

    @property
    def paired(self) -> Tensor:
        """G_i, packed."""
        return self.owner.read(self._place, 1)

    @property
    def total(self) -> Tensor:
        """S_i, packed."""
        return self.owner.read(self._place, 2)

    @property
    def width(self) -> int:
        """d."""
        return len(self.owner.change)

    @property
    def pooled(self) -> "StoredMoments | None":
        """The same of the prompts' pooled texts, None where they are not read."""
        return None if self.owner.pooled is None else self.owner.pooled[self._place]

    @property
    def others(self) -> tuple["StoredMoments", ...]:
        """The same of the model's further texts."""
        return tuple(other[self._place] for other in self.owner.others)


class StreamedMoments(Sequence):
    """The moments of many concepts: their sums in memory, each one's own in a file without a name.

    change: sum A_i - G_i [d, d], paired: sum G_i, total: sum S_i, packed; float64 on the CPU.  pooled: the same list of
    the pooled texts, None where they are not read.  others: the same lists of the model's further texts.
    """

    def __init__(self, moments: Iterable[ConceptMoments], folder: Path | None = None):
        """moments: taken one at a time, each dropped before the next.  folder: for the file, the system's own if None.

        Raises ValueError for an empty list, OSError where the disk is full.
        """
        self._file, self._lock = tempfile.TemporaryFile(dir=folder), threading.Lock()
        self._entries: list[StoredMoments] = []
        self.pooled: StreamedMoments | None = None
        self.others: tuple[StreamedMoments, ...] = ()
        for own in moments:
            if self._entries:
                self._add(own)
            else:
                self._begin(own, folder)
        if not self._entries:
            raise ValueError("there are no moments to keep")

    def _begin(self, own: ConceptMoments, folder: Path | None) -> None:
        self._shapes = [part(own).shape for part in PARTS]
        self._sums = [torch.zeros(shape, dtype=torch.float64) for shape in self._shapes]
        self._add_own(own)
        self.pooled = None if own.pooled is None else StreamedMoments((own.pooled,), folder)
        self.others = tuple(StreamedMoments((other,), folder) for other in own.others)

    def _add(self, own: ConceptMoments) -> None:
        self._add_own(own)
        if self.pooled is not None:
            self.pooled._add(own.pooled)
        for kept, other in zip(self.others, own.others, strict=True):
            kept._add(other)

    def _add_own(self, own: ConceptMoments) -> None:
        for total, part in zip(self._sums, PARTS, strict=True):
            moment = part(own)
            total += moment
            self._file.write(memoryview(moment.to(torch.float32).contiguous().numpy()).cast("B"))
        self._entries.append(StoredMoments(self, len(self._entries), own))

    def read(self, place: int, part: int) -> Tensor:
        """One sum of one concept, float64. place: of the concept.  part: of PARTS."""
        sizes = [shape.numel() for shape in self._shapes]
        found = torch.empty(self._shapes[part], dtype=torch.float32)
        with self._lock:
            self._file.seek(4 * (place * sum(sizes) + sum(sizes[:part])))
            self._file.readinto(memoryview(found.numpy()).cast("B"))
        return found.double()

    @property
    def change(self) -> Tensor:
        """sum A_i - G_i."""
        return self._sums[0]

    @property
    def paired(self) -> Tensor:
        """sum G_i."""
        return self._sums[1]

    @property
    def total(self) -> Tensor:
        """sum S_i."""
        return self._sums[2]

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, place):
        return self._entries[place]


Moments = Sequence[ConceptMoments] | StreamedMoments


def gather_moments(moments: Iterable[ConceptMoments], most_bytes: int, folder: Path | None = None) -> Moments:
    """Moments as a tuple, or on the disk of `folder` where they would take more than `most_bytes` of memory."""
    given, kept, size = iter(moments), [], 0
    for own in given:
        kept.append(own)
        size += own.bytes
        if size > most_bytes:
            return StreamedMoments(chain(_emptied(kept), given), folder)
    return tuple(kept)


def collect_moments(moments: Iterable[ConceptMoments]) -> Moments:
    """Moments as a tuple; the list on the disk that they are of, where they are all that is in it, in order: its sums
    are exact, and theirs are rounded."""
    kept = tuple(moments)
    owner = getattr(kept[0], "owner", None) if kept else None
    same = owner is not None and len(owner) == len(kept) and all(map(is_, owner, kept))
    return owner if same else kept


def _emptied(kept: list) -> Iterator:
    kept.reverse()
    while kept:
        yield kept.pop()


def pooled_of(concepts: Moments) -> Moments:
    """The pooled texts' moments of a list that has them."""
    return concepts.pooled if isinstance(concepts, StreamedMoments) else [concept.pooled for concept in concepts]


def texts_of(concepts: Moments) -> list[Moments]:
    """The moments of a list by the texts that the model reads, the first one's and each further one's."""
    if isinstance(concepts, StreamedMoments):
        return [concepts, *concepts.others]
    return [concepts, *map(list, zip(*(concept.others for concept in concepts), strict=True))]


def change_sums(concepts: Moments, strengths: Sequence[float], device: torch.device) -> tuple[Tensor, Tensor]:
    """(sum s_i (A_i - G_i) [d, d], sum G_i packed) over the concepts with a strength s_i above 0, float64."""
    every = list(zip(concepts, strengths, strict=True))
    if isinstance(concepts, StreamedMoments):
        paired = _without(concepts.paired, (c.paired for c, s in every if s == 0)).to(device)
        if all(s == 1 for s in strengths):
            return concepts.change.to(device, copy=True), paired
        numerator = torch.zeros_like(concepts.change, device=device)
        for concept, strength in every:
            if strength > 0:
                numerator.add_(concept.change.to(device), alpha=strength)
        return numerator, paired
    numerator, paired = None, None
    for concept, strength in every:
        if strength > 0:
            packed = concept.paired.to(device)
            if numerator is None:
                numerator = torch.zeros_like(concept.cross, device=device)
                paired, scaled = torch.zeros_like(packed), torch.zeros_like(packed)
            paired += packed
            scaled.add_(packed, alpha=strength)
            numerator.add_(concept.cross.to(device), alpha=strength)
    numerator -= unpack(scaled)
    return numerator, paired


def _without(total: Tensor, parts: Iterator[Tensor]) -> Tensor:
    """A sum without some of its parts."""
    left = total.clone()
    for part in parts:
        left -= part
    return left


def total_sum(concepts: Moments, strengths: Sequence[float], device: torch.device) -> Tensor:
    """sum S_i over the concepts with a strength above 0, packed, float64."""
    every = list(zip(concepts, strengths, strict=True))
    if isinstance(concepts, StreamedMoments):
        return _without(concepts.total, (c.total for c, s in every if s == 0)).to(device)
    total = None
    for concept, strength in every:
        if strength > 0:
            total = torch.zeros_like(concept.total, device=device) if total is None else total
            total += concept.total.to(device)
    return total
