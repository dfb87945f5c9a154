"""Moments in safetensors files: beside the LoRAs of a set, and those of a shard of concepts alone."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ..concepts.concept import Concept
from ..messages import MessageError
from ..method.moments import ConceptMoments, packed_trace, packed_width
from ..method.span import RowMoments
from .records import SHARD, MomentsRecord, dumps, read_record

FORMAT = "mace-moments-1"

_POOLED, _OTHER = "pooled.", "other."
_SUMS, _ROWS = ("cross", "paired", "total"), ("f", "g", "rest")


class MomentsError(MessageError):
    """Moments that a file should hold and does not."""


# By identity: to compare what lies in it would read the file.
@dataclass(frozen=True, eq=False)
class FileMoments:
    """What `ConceptMoments` is, each sum read from a file's tensors when it is asked for, and not kept.

    tensors: of the file, by name; they were checked.  prefix: of their names.  width: d.  size: the trace of G_i.  The
    others as there.
    """

    tensors: Mapping[str, Tensor] = field(repr=False)
    prefix: str
    width: int
    size: float
    pairs: int
    prompts: int
    pooled: "FileMoments | None" = None
    others: tuple["FileMoments", ...] = ()
    # In memory.
    bytes: ClassVar[int] = 0

    @property
    def cross(self) -> Tensor:
        """A_i, [d, d] float64."""
        return self.tensors[f"{self.prefix}cross"]

    @property
    def paired(self) -> Tensor:
        """G_i, packed."""
        return self.tensors[f"{self.prefix}paired"]

    @property
    def total(self) -> Tensor:
        """S_i, packed."""
        return self.tensors[f"{self.prefix}total"]


def checked(tensors: Mapping[str, Tensor], name: str, dim: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor of a file. Raises KeyError where there is none, MomentsError for another kind and for one that is not
    finite."""
    tensor = tensors[name]
    if tensor.dim() != dim or tensor.dtype != dtype:
        raise MomentsError(f"{name} is {tensor.dtype} {list(tensor.shape)}, not {dtype} of {dim} dimensions")
    if not torch.isfinite(tensor).all():
        raise MomentsError(f"{name} holds values that are not finite (NaN or infinity)")
    return tensor


def moments_tensors(prefix: str, moments: ConceptMoments | RowMoments | None) -> dict[str, Tensor]:
    """The tensors of one concept's moments, by name behind a prefix; none for None."""
    if moments is None:
        return {}
    names = _ROWS if isinstance(moments, RowMoments) else _SUMS
    found = {f"{prefix}{name}": getattr(moments, name) for name in names}
    found |= moments_tensors(prefix + _POOLED, moments.pooled)
    for i, other in enumerate(moments.others):
        found |= moments_tensors(f"{prefix}{_OTHER}{i}.", other)
    return found


def moments_of(
    prefix: str, concept: Concept, entry: MomentsRecord | None, tensors: Mapping[str, Tensor], later: bool = False
) -> ConceptMoments | FileMoments | RowMoments | None:
    """One concept's moments as `moments_tensors` named them. Raises MomentsError or KeyError for broken ones.

    later: sums are looked at here, let go of, and read again when they are asked for; rows are small, and stay.
    """
    if entry is None:
        return None
    # One vector a prompt: there is no more to count.
    own = MomentsRecord(pairs=entry.prompts, prompts=entry.prompts)
    has_pooled = f"{prefix}{_POOLED}cross" in tensors
    pooled = moments_of(prefix + _POOLED, concept, own, tensors, later) if has_pooled else None
    others = tuple(
        moments_of(f"{prefix}{_OTHER}{i}.", concept, other, tensors, later) for i, other in enumerate(entry.others)
    )
    if f"{prefix}f" in tensors:
        rows = [checked(tensors, f"{prefix}{name}", 2) for name in _ROWS]
        if rows[0].shape != rows[1].shape or rows[2].shape[1] != rows[0].shape[1]:
            raise MomentsError(f"the rows of {concept.target!r} do not fit each other: {[list(r.shape) for r in rows]}")
        return RowMoments(*rows, entry.pairs, entry.prompts, pooled, others)
    cross = checked(tensors, f"{prefix}cross", 2, torch.float64)
    paired, total = (checked(tensors, f"{prefix}{name}", 1, torch.float64) for name in ("paired", "total"))
    if {*cross.shape} != {packed_width(paired)} or packed_width(total) != packed_width(paired):
        raise MomentsError(
            f"the moments of {concept.target!r} do not fit each other: {list(cross.shape)}, {len(paired)} and "
            f"{len(total)} elements"
        )
    counted = entry.pairs, entry.prompts, pooled, others
    return (
        FileMoments(tensors, prefix, len(cross), packed_trace(paired), *counted)
        if later
        else ConceptMoments(cross, paired, total, *counted)
    )


def shard_to_file(
    concepts: Sequence[Concept], moments: Sequence[ConceptMoments | RowMoments]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of the file of some concepts' moments."""
    tensors: dict[str, Tensor] = {}
    listed = []
    for i, (concept, own) in enumerate(zip(concepts, moments, strict=True)):
        tensors |= moments_tensors(f"{i}.", own)
        listed.append({"concept": asdict(concept), "moments": _counts(own)})
    return tensors, {"format": FORMAT, "shard": dumps(listed)}


def _counts(moments: ConceptMoments | RowMoments) -> dict:
    others = [_counts(other) for other in moments.others]
    return {"pairs": moments.pairs, "prompts": moments.prompts, "others": others}


def shard_concepts(metadata: Mapping[str, str]) -> tuple[Concept, ...]:
    """The concepts of a shard's file, in order. Raises MomentsError for another file, RecordError for a damaged one."""
    return tuple(entry.concept.made() for entry in _listed(metadata))


def shard_moments(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str], place: int
) -> ConceptMoments | RowMoments:
    """The moments of one concept of a shard's file. tensors: those named "<place>." at the least. Raises as above."""
    entry = _listed(metadata)[place]
    return moments_of(f"{place}.", entry.concept.made(), entry.moments, tensors)


def _listed(metadata: Mapping[str, str]):
    if metadata.get("format") != FORMAT:
        raise MomentsError("this file holds no moments of a shard (or a later version's)")
    return read_record(SHARD, metadata.get("shard", ""), "shard")
