"""Second moments of text embeddings: all that the closed forms (Eq. 1, 2, 7, 19) ever see of a prompt.

Everything is summed in float64. Sums are streamed: what is kept does not grow with the number of prompts.
"""

import mmap
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .tokens import Pairing

# Small blocks save up to half of the products, and products of few rows are slow.
ROWS_TOGETHER = 96
NOT_FINITE = "the text encoder gave values that are not finite (NaN or infinity); check the CLIP model"


def working_device(device: torch.device) -> torch.device:
    """Where moments are summed and systems solved: the given device if it is sure to have float64, else the CPU."""
    return device if device.type in ("cpu", "cuda") else torch.device("cpu")


def in_float64(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor in float64 on a device that has it (see `working_device`).

    Moved first and widened there: where it lies there may be no float64.
    """
    return tensor.to(device).double()


def pack(matrix: Tensor, out: Tensor | None = None) -> Tensor:
    """The lower triangle of a symmetric [d, d] matrix, as a vector of d (d + 1) / 2 elements; into `out` if given."""
    return torch.cat([row[:length] for length, row in enumerate(matrix, 1)], out=out)


def unpack(packed: Tensor) -> Tensor:
    """The symmetric [d, d] matrix of a vector made by `pack`."""
    width = packed_width(packed)
    lower = torch.ones(width, width, dtype=torch.bool, device=packed.device).tril()
    matrix = packed.new_zeros(width, width).masked_scatter_(lower, packed)
    return matrix + matrix.tril(-1).mT


def packed_trace(packed: Tensor) -> float:
    """The trace of a matrix packed by `pack`, whose diagonal ends its rows."""
    rows = torch.arange(packed_width(packed), device=packed.device)
    return float(packed[rows * (rows + 3) // 2].sum())


def packed_width(packed: Tensor) -> int:
    """d of a vector made by `pack`. Raises ValueError for a length that no d gives."""
    width = int((2 * packed.numel()) ** 0.5)
    if packed.dim() != 1 or width * (width + 1) // 2 != packed.numel():
        raise ValueError(f"a packed symmetric matrix has d (d + 1) / 2 elements, not {tuple(packed.shape)}")
    return width


def add_products(lower: Tensor, left: Tensor, right: Tensor) -> None:
    """Add sum l r^T over the rows l, r of left and right [n, d] to the lower triangle of a [d, d] matrix, in place.

    For sums that are symmetric, such as e e^T: the rest of the matrix is of no use to them, and most of it is left out.
    """
    width = len(lower)
    for start in range(0, width, ROWS_TOGETHER):
        rows = slice(start, min(start + ROWS_TOGETHER, width))
        lower[rows, : rows.stop].addmm_(left[:, rows].T, right[:, : rows.stop])


class Gram:
    """A running sum of e e^T over token embeddings e (columns of length d), in float64 on `device`."""

    def __init__(self, width: int, device: torch.device):
        self._lower = torch.zeros(width, width, dtype=torch.float64, device=working_device(device))

    def add(self, embeddings: Tensor) -> None:
        """Add every token of embeddings [..., d]. Raises ValueError for values that are not finite."""
        tokens = _tokens(embeddings, self._lower)
        add_products(self._lower, tokens, tokens)

    @property
    def packed(self) -> Tensor:
        """The sum so far, packed."""
        return pack(self._lower)

    @property
    def matrix(self) -> Tensor:
        """The sum so far, [d, d]."""
        return self._lower.tril() + self._lower.tril(-1).mT


@dataclass(frozen=True)
class ConceptMoments:
    """The sums of one concept, in float64.

    cross: A_i = sum e_g e_f^T, [d, d].  paired: G_i = sum e_f e_f^T, packed.  total: S_i = sum e e^T over
    all tokens of all its prompts, packed.  pairs: tokens in A_i.  prompts: prompts in S_i.  pooled: the same sums of
    the prompts' pooled texts [c], where the model reads them besides the tokens (see `pooled_moments`).  others: those
    of further texts, where the model reads its prompt by several of their own.
    """

    cross: Tensor = field(repr=False)
    paired: Tensor = field(repr=False)
    total: Tensor = field(repr=False)
    pairs: int
    prompts: int
    pooled: "ConceptMoments | None" = None
    others: tuple["ConceptMoments", ...] = ()

    @property
    def width(self) -> int:
        """d."""
        return len(self.cross)

    @property
    def size(self) -> float:
        """The trace of G_i."""
        return packed_trace(self.paired)

    @property
    def bytes(self) -> int:
        """Memory it holds."""
        own = sum(t.numel() * t.element_size() for t in (self.cross, self.paired, self.total))
        return own + sum(part.bytes for part in (self.pooled, *self.others) if part)


Batch = tuple[Tensor, Tensor, list[Pairing]]


def concept_moments(batches: Iterable[Batch], width: int, device: torch.device) -> ConceptMoments:
    """Sum a concept's moments from its prompts.

    batches: (target embeddings [B, N, d], mapping embeddings [B, N, d], B pairings), in any number and any
    dtype; each is used once and may be freed. The result lies on the CPU, so that many concepts can be kept.
    Raises ValueError for an embedding of another width or one that is not finite.
    """
    cross = torch.zeros(width, width, dtype=torch.float64, device=working_device(device))
    # Symmetric, of which the lower triangles are summed.
    paired, rest = torch.zeros_like(cross), torch.zeros_like(cross)
    pairs = prompts = 0
    for targets, mappings, pairings in batches:
        f_at = _places(targets, [p.target for p in pairings])
        g_at = _places(mappings, [p.mapping for p in pairings])
        targets, mappings = _flat(targets, width), _flat(mappings, width)
        f, g = (in_float64(rows, cross.device) for rows in (targets[f_at], mappings[g_at]))
        cross.addmm_(g.T, f)
        add_products(paired, f, f)
        # S = G + sum (1 - times paired) e e^T: a product over the few tokens where that is not 0.
        missing = 1 - torch.bincount(f_at, minlength=len(targets))
        at = missing.nonzero()[:, 0]
        e = in_float64(targets[at], cross.device)
        add_products(rest, e * in_float64(missing[at], cross.device)[:, None], e)
        pairs += len(f_at)
        prompts += len(pairings)
    total = paired + rest
    # A value that is not finite leaves its trace in the sums: one look at them, in place of one at every token.
    if not (torch.isfinite(cross).all() and torch.isfinite(total.diagonal()).all()):
        raise ValueError(NOT_FINITE)
    kept = ConceptMoments(*_own_pages(width), pairs, prompts)
    kept.cross.copy_(cross)
    pack(paired.cpu(), out=kept.paired)
    pack(total.cpu(), out=kept.total)
    return kept


def pooled_moments(targets: Tensor, mappings: Tensor, device: torch.device) -> ConceptMoments:
    """A concept's moments of its prompts' pooled texts, targets f and mappings g, both [P, c] in the same order.

    A prompt's pooled text is one vector that carries its concept, so that each is one pair, A = sum g f^T,
    G = S = sum f f^T. Raises ValueError for values that are not finite.
    """
    where = working_device(device)
    f, g = (in_float64(rows, where) for rows in (targets, mappings))
    if not (torch.isfinite(f).all() and torch.isfinite(g).all()):
        raise ValueError(NOT_FINITE)
    kept = ConceptMoments(*_own_pages(f.shape[1]), pairs=len(f), prompts=len(f))
    kept.cross.copy_(g.T @ f)
    pack((f.T @ f).cpu(), out=kept.paired)
    kept.total.copy_(kept.paired)
    return kept


def _own_pages(width: int) -> tuple[Tensor, Tensor, Tensor]:
    """A [d, d] matrix and two packed ones on the CPU, float64, in memory pages of their own.

    Hundreds of concepts are kept while passing tensors come and go. On the heap they would pin the holes those
    leave, and memory would grow by more than what is kept.
    """
    sizes = (width * width, width * (width + 1) // 2, width * (width + 1) // 2)
    cross, paired, total = torch.frombuffer(mmap.mmap(-1, 8 * sum(sizes)), dtype=torch.float64).split(sizes)
    return cross.view(width, width), paired, total


def _places(embeddings: Tensor, positions: list[tuple[int, ...]]) -> Tensor:
    """Rows of embeddings [B, N, d], read as [B N, d], of each prompt's positions."""
    window = embeddings.shape[1]
    rows = [prompt * window + i for prompt, at in enumerate(positions) for i in at]
    return torch.tensor(rows, dtype=torch.long, device=embeddings.device)


def _flat(embeddings: Tensor, width: int) -> Tensor:
    """Tokens as rows. Raises ValueError for another width."""
    if embeddings.shape[-1] != width:
        raise ValueError(f"embeddings are {embeddings.shape[-1]} wide, the moments {width}")
    return embeddings.reshape(-1, width)


def _tokens(embeddings: Tensor, like: Tensor) -> Tensor:
    tokens = in_float64(_flat(embeddings, like.shape[-1]), like.device)
    if not torch.isfinite(tokens).all():
        raise ValueError(NOT_FINITE)
    return tokens
