"""How many prompts a text encoder reads at once."""

from collections.abc import Iterator, Sequence

BATCH = 16


def chunks(items: Sequence) -> Iterator[list]:
    """The items in batches of BATCH."""
    for start in range(0, len(items), BATCH):
        yield list(items[start : start + BATCH])
