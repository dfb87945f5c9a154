"""Which rows that a model reads of a concept's prompt pair with which of its mapping's."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from ...mace.method.tokens import Pairing, PairingError, fill, pair_located
from .port_rows import Block, Rows, Section


def pair_rows(
    blocks: Sequence[Block],
    sections: Mapping[str, Section],
    template: str,
    phrases: tuple[str, str],
    sides: tuple[Rows, Rows],
) -> Pairing:
    """The pairs of one text that a model reads.

    phrases: target and mapping.  sides: the rows of the template with each.
    Raises PairingError where no row is of the target.
    """
    parts = []
    for number, block in enumerate(blocks):
        starts, counts = [], []
        for rows in sides:
            begins = [each.start + rows.empty_in_front for each in blocks] + [len(rows.values)]
            starts.append(begins[number])
            # Up to what stands in front of the next block.
            behind = blocks[number + 1].wholes if number + 1 < len(blocks) else 0
            counts.append(begins[number + 1] - behind - begins[number])
        located = (sections[block.section].locate(template, phrase) for phrase in phrases)
        found = pair_located(*located, (block.lead, block.lead), tuple(counts))
        wholes = range(-block.wholes, 0)
        found = replace(found, target=(*wholes, *found.target), mapping=(*wholes, *found.mapping))
        parts.append(_shifted(found, *starts))
    if not any(part.phrase for part in parts):
        raise PairingError(f"the model reads no token of {phrases[0]!r} in the prompt {fill(template, phrases[0])!r}")
    found = Pairing(*(sum((getattr(part, side) for part in parts), ()) for side in Pairing.__dataclass_fields__))
    return _in_place(found, *(rows.values for rows in sides))


def _in_place(pairing: Pairing, f: Tensor, g: Tensor) -> Pairing:
    """The same pairs, but rows that both prompts have alike at one place are pairs there.

    They are no text, such as what a model puts in place of padding (HunyuanDiT): moved on with the words behind a
    phrase, each would be taken for its neighbour.
    """
    count = min(len(f), len(g))
    # Zeros are not read at all.
    same = (f[:count] == g[:count]).all(-1) & (f[:count] != 0).any(-1)
    alike = set(same.nonzero()[:, 0].tolist()) - set(pairing.phrase)
    pairs = zip(pairing.target, pairing.mapping, strict=True)
    pairs = [(i, j) for i, j in pairs if i not in alike and j not in alike] + [(i, i) for i in alike]
    return replace(pairing, target=tuple(i for i, _ in sorted(pairs)), mapping=tuple(j for _, j in sorted(pairs)))


def pairs_that_count(pairing: Pairing, f: Rows, g: Rows) -> Pairing:
    """The pairs of rows that both count, as places among those that count."""
    left, right = (
        {place: number for number, place in enumerate(rows.counted.nonzero()[:, 0].tolist())} for rows in (f, g)
    )
    pairs = zip(pairing.target, pairing.mapping, strict=True)
    kept = [(left[i], right[j]) for i, j in pairs if i in left and j in right]
    return Pairing(tuple(i for i, _ in kept), tuple(j for _, j in kept), ())


def _shifted(pairing: Pairing, f: int, g: int) -> Pairing:
    """The same pairs in rows that begin f and g further on."""
    target, phrase = (tuple(i + f for i in side) for side in (pairing.target, pairing.phrase))
    mapping, own = (tuple(i + g for i in side) for side in (pairing.mapping, pairing.own))
    return Pairing(target, mapping, phrase, own)
