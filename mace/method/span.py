"""Refinement of models whose text is very wide: sums kept as the rows they are of, and solved in the rows' span.

A moment of d = 15360 (FLUX.2) is 1.9 GB and one of 53248 (Ideogram 4) 23 GB, while a concept's prompts have some
hundred rows. With F [n, d] and E [n, d] the paired rows of targets and mappings, all concepts' one below the other, and
S the strength of each row's concept on a diagonal, Eq. 19 without a prior is

    T - I = (E - F)^T S F (F^T F + mu I)^-1 = [(E - F)^T S] [(F F^T + mu I)^-1 F]

by the identity F (F^T F + mu I)^-1 = (F F^T + mu I)^-1 F: a system of n unknowns, and two factors of rank n.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .moments import NOT_FINITE, Batch, ConceptMoments, pack, working_device
from .refine import LowRank, RefineWeights, solve_right

# From this width on a concept is kept as rows: two of its moments would take more than a gigabyte.
WIDE = 8192


@dataclass(frozen=True)
class RowMoments:
    """What `ConceptMoments` is, by its rows: f [n, d] of the targets and g [n, d] of the mappings, float32.

    rest: [k, d], the rows of the prompts that are not paired.  Equal pairs are kept once, times the root of how many
    they are.  pooled, others: as of `ConceptMoments`.
    """

    f: Tensor = field(repr=False)
    g: Tensor = field(repr=False)
    rest: Tensor = field(repr=False)
    pairs: int
    prompts: int
    pooled: ConceptMoments | None = None
    others: tuple["RowMoments", ...] = ()

    @property
    def width(self) -> int:
        """d."""
        return self.f.shape[1]

    @property
    def bytes(self) -> int:
        """Memory it holds."""
        own = sum(t.numel() * t.element_size() for t in (self.f, self.g, self.rest))
        return own + sum(part.bytes for part in (self.pooled, *self.others) if part)

    @property
    def size(self) -> float:
        """The trace of G."""
        return float(self.f.double().square().sum())

    @property
    def cross(self) -> Tensor:
        """A, [d, d] float64, made anew each time."""
        return self.g.double().T @ self.f.double()

    @property
    def paired(self) -> Tensor:
        """G, packed."""
        return pack(self.f.double().T @ self.f.double())

    @property
    def total(self) -> Tensor:
        """S, packed."""
        rows = torch.cat([self.f, self.rest]).double()
        return pack(rows.T @ rows)


def row_moments(batches: Iterable[Batch]) -> RowMoments:
    """A concept's rows from its prompts; as `concept_moments`. Raises ValueError for values that are not finite."""
    f, g, rest, prompts = [], [], [], 0
    for targets, mappings, pairings in batches:
        for target, mapping, pairing in zip(targets, mappings, pairings, strict=True):
            f.append(target[list(pairing.target)].float().cpu())
            g.append(mapping[list(pairing.mapping)].float().cpu())
            paired = set(pairing.target)
            rest.append(target[[i for i in range(len(target)) if i not in paired]].float().cpu())
            prompts += 1
    f, g, rest = map(torch.cat, (f, g, rest))
    if not (torch.isfinite(f).all() and torch.isfinite(g).all() and torch.isfinite(rest).all()):
        raise ValueError(NOT_FINITE)
    pairs = len(f)
    # Templates of chat models give the same rows in every prompt.
    both, counts = torch.cat([f, g], 1).unique(dim=0, return_counts=True)
    both = both * counts.sqrt()[:, None]
    return RowMoments(*both.chunk(2, 1), rest, pairs, prompts)


def span_refinement(
    concepts: Sequence[RowMoments],
    weights: RefineWeights,
    strengths: Sequence[float] | None = None,
    device: torch.device | None = None,
) -> LowRank:
    """T - I of Eq. 19 without a prior, in the paper's metric; as `refinement`.

    Raises ValueError where there is nothing to refine, SingularSystem for mu = 0 and for rows that fix no solution.
    """
    strengths = [1.0] * len(concepts) if strengths is None else strengths
    active = [(concept, strength) for concept, strength in zip(concepts, strengths, strict=True) if strength > 0]
    if not active:
        raise ValueError("no concept with a strength above 0: there is nothing to refine")
    where = working_device(device or torch.device("cpu"))
    f, g = (torch.cat([getattr(concept, side) for concept, _ in active]).to(where) for side in ("f", "g"))
    scale = torch.cat([torch.full((len(concept.f),), strength) for concept, strength in active]).to(where)
    system = f.double() @ f.double().T
    system.diagonal().add_(weights.mu)
    right = solve_right(f.double().T, system).T
    return LowRank(((g - f) * scale[:, None]).T.contiguous(), right.float())
