"""Units of work: some concepts of a list, in its order, and the key of all that their result depends on.

Their size is fixed, whatever the number of workers: sums, and concepts that train side by side, round alike then.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

# Raised when what a unit does changes in a way that nothing in its key shows.
VERSION = 1
MOMENTS, LORAS = "moments", "loras"
NAMED = 3


@dataclass(frozen=True)
class Unit:
    """kind: MOMENTS or LORAS.  place: among the units of its kind.  concepts: as plain values, so that they can be
    sent.  key: SHA-256 (hex)."""

    kind: str
    place: int
    concepts: tuple[dict, ...]
    key: str

    @property
    def targets(self) -> list[str]:
        """The names of its concepts."""
        return [concept["target"] for concept in self.concepts]

    @property
    def name(self) -> str:
        """What it is, in words."""
        names = self.targets
        more = f" and {len(names) - NAMED} others" if len(names) > NAMED else ""
        return f"{self.kind} of {', '.join(names[:NAMED])}{more}"


def units_of(kind: str, concepts: Sequence, size: int, key_of: Callable[[Sequence], str]) -> list[Unit]:
    """The units of a list. key_of(concepts): the key of some of them."""
    shards = [concepts[start : start + size] for start in range(0, len(concepts), size)]
    return [
        Unit(kind, place, tuple(asdict(concept) for concept in shard), key_of(shard))
        for place, shard in enumerate(shards)
    ]
