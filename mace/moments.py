"""Second moments of text embeddings: all that the closed forms (Eq. 1, 2, 7, 19) ever see of a prompt.

Everything is summed in float64. Sums are streamed: what is kept does not grow with the number of prompts.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from .tokens import Pairing


def working_device(device: torch.device) -> torch.device:
    """Where moments are summed and systems solved: the given device, or the CPU where it has no float64."""
    return torch.device("cpu") if device.type == "mps" else device


def pack(matrix: Tensor) -> Tensor:
    """The lower triangle of a symmetric [d, d] matrix, as a vector of d (d + 1) / 2 elements."""
    rows, columns = torch.tril_indices(*matrix.shape, device=matrix.device)
    return matrix[rows, columns]


def unpack(packed: Tensor) -> Tensor:
    """The symmetric [d, d] matrix of a vector made by `pack`."""
    width = packed_width(packed)
    rows, columns = torch.tril_indices(width, width, device=packed.device)
    matrix = packed.new_empty(width, width)
    matrix[rows, columns] = packed
    matrix[columns, rows] = packed
    return matrix


def packed_width(packed: Tensor) -> int:
    """d of a vector made by `pack`. Raises ValueError for a length that no d gives."""
    width = int((2 * packed.numel()) ** 0.5)
    if packed.dim() != 1 or width * (width + 1) // 2 != packed.numel():
        raise ValueError(f"a packed symmetric matrix has d (d + 1) / 2 elements, not {tuple(packed.shape)}")
    return width


class Gram:
    """A running sum of e e^T over token embeddings e (columns of length d), in float64 on `device`."""

    def __init__(self, width: int, device: torch.device):
        self.matrix = torch.zeros(width, width, dtype=torch.float64, device=working_device(device))

    def add(self, embeddings: Tensor) -> None:
        """Add every token of embeddings [..., d]. Raises ValueError for values that are not finite."""
        tokens = _tokens(embeddings, self.matrix)
        self.matrix.addmm_(tokens.T, tokens)


@dataclass(frozen=True)
class ConceptMoments:
    """The sums of one concept, in float64.

    cross: A_i = sum e_g e_f^T, [d, d].  paired: G_i = sum e_f e_f^T, packed.  total: S_i = sum e e^T over
    all tokens of all its prompts, packed.  pairs: tokens in A_i.  prompts: prompts in S_i.
    """

    cross: Tensor
    paired: Tensor
    total: Tensor
    pairs: int
    prompts: int

    @property
    def bytes(self) -> int:
        """Memory it holds."""
        return sum(t.numel() * t.element_size() for t in (self.cross, self.paired, self.total))


Batch = tuple[Tensor, Tensor, list[Pairing]]


def concept_moments(batches: Iterable[Batch], width: int, device: torch.device) -> ConceptMoments:
    """Sum a concept's moments from its prompts.

    batches: (target embeddings [B, N, d], mapping embeddings [B, N, d], B pairings), in any number and any
    dtype; each is used once and may be freed. The result lies on the CPU, so that many concepts can be kept.
    Raises ValueError for an embedding of another width or one that is not finite.
    """
    where = working_device(device)
    paired, total = Gram(width, where), Gram(width, where)
    cross = torch.zeros_like(paired.matrix)
    pairs = prompts = 0
    for targets, mappings, pairings in batches:
        rows = torch.tensor([b for b, p in enumerate(pairings) for _ in p.target], dtype=torch.long)
        f = targets[rows, torch.tensor([i for p in pairings for i in p.target], dtype=torch.long)]
        g = mappings[rows, torch.tensor([i for p in pairings for i in p.mapping], dtype=torch.long)]
        f, g = _tokens(f, cross), _tokens(g, cross)
        cross.addmm_(g.T, f)
        paired.add(f)
        total.add(targets)
        pairs += len(rows)
        prompts += len(pairings)
    return ConceptMoments(cross.cpu(), pack(paired.matrix).cpu(), pack(total.matrix).cpu(), pairs, prompts)


def _tokens(embeddings: Tensor, like: Tensor) -> Tensor:
    if embeddings.shape[-1] != like.shape[-1]:
        raise ValueError(f"embeddings are {embeddings.shape[-1]} wide, the moments {like.shape[-1]}")
    tokens = embeddings.reshape(-1, embeddings.shape[-1]).to(like)
    if not torch.isfinite(tokens).all():
        raise ValueError("the text encoder gave values that are not finite (NaN or infinity); check the CLIP model")
    return tokens
