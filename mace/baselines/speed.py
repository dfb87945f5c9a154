"""SPEED (Li et al. 2026, arXiv 2503.07392): an edit of each projection within the null space of what is preserved.

For a projection W [d_out, d], with the columns of C1 the tokens to erase, of C* the tokens of their destinations, of C0
those to preserve and of C2 the invariants, the edited W' = W + Delta P minimises (Eq. 10)

    ||(W + Delta P) C1 - W C*||^2 + retain_scale ||Delta P||^2    with    (Delta P) C2 = 0,

where P projects on the null space of C0 (Eq. 2). Its closed form (Eq. 11) is Delta P = W (A - G) P Q M with
A = C* C1^T, G = C1 C1^T, M = (G P + retain_scale I)^-1 and Q = I - M C2 (C2^T P M C2)^-1 C2^T P. With N an orthonormal
basis of the null space that C2 leaves, P = N N^T, and the same is

    Delta P = W (A - G) N (N^T G N + retain_scale I)^-1 N^T,

a positive definite system of the size of that space. What is preserved is refined for every projection: those that
erasing alone would move most (IPF, Eq. 5 and 6), and copies of them moved along the direction that W reads least
(DPA, Eq. 7 to 9).
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..method.moments import ConceptMoments, in_float64, unpack
from ..method.tokens import Pairing

# The centres that stand for the tokens of the empty prompt among the invariants, as the paper's release has them.
CENTRES = 3
MOST_ROUNDS = 100
# Invariants less than this share of their length within the null space count as outside it.
WITHIN = 1e-9


class NoNullSpace(ValueError):
    """What is preserved leaves no direction to edit in; the message names the cure."""


@dataclass(frozen=True)
class SpeedSettings:
    """The settings of the method. The defaults are those of the paper's release for one to three concepts.

    threshold: directions that the mean of c c^T over what is preserved measures less than this along are its null
    space, in squared units of the embeddings.  retain_scale: the weight of ||Delta P||^2, above 0.  augment: copies of
    each preserved token (N_A).  filtered: whether IPF filters what is preserved; the copies it filters always.  lamb: 0
    for invariants that are kept exactly, else they are kept with the weight 1 / lamb.
    """

    threshold: float = 0.1
    retain_scale: float = 1.0
    augment: int = 10
    filtered: bool = True
    lamb: float = 0.0

    def __post_init__(self):
        if not (0.0 < self.threshold < float("inf") and 0.0 < self.retain_scale < float("inf")):
            raise ValueError("threshold and retain_scale must be finite and above 0")
        if self.augment < 0 or not 0.0 <= self.lamb < float("inf"):
            raise ValueError("augment and lamb must be finite and not negative")


@dataclass(frozen=True)
class Edits:
    """What is to be erased. cross: A, gram: G, [d, d] float64, both means over the edits."""

    cross: Tensor = field(repr=False)
    gram: Tensor = field(repr=False)

    @property
    def pull(self) -> Tensor:
        """A - G."""
        return self.cross - self.gram


@dataclass(frozen=True)
class Preserved:
    """What is to be preserved. tokens: [n, d], invariants: C2 as rows [m, d], both float64."""

    tokens: Tensor = field(repr=False)
    invariants: Tensor = field(repr=False)


@dataclass(frozen=True)
class SpeedEdit:
    """One projection's edit. change: W' - W, [d_out, d].  kept: preserved tokens after IPF.  copies: their copies after
    IPF.  free: the dimension of the space edited in."""

    change: Tensor = field(repr=False)
    kept: int
    copies: int
    free: int


def last_token(target: int, destination: int) -> Pairing:
    """The pair of two bare phrases' last tokens. target, destination: the phrases' numbers of tokens.

    The last token of the empty destination is start-of-text, at position 0, as in the paper's release.
    """
    return Pairing((target,), (destination,), tuple(range(1, target + 1)))


def all_tokens(target: int, window: int = 77) -> Pairing:
    """All tokens of two prompts but start-of-text, each with the one in its place: how the release erases nudity."""
    every = tuple(range(1, window))
    return Pairing(every, every, tuple(range(1, target + 1)))


def edits_of(moments: ConceptMoments, device: torch.device | None = None) -> Edits:
    """The means over the phrases of `moments.concept_moments`. Raises ValueError for none."""
    if moments.prompts == 0:
        raise ValueError("there is no phrase to erase")
    return Edits(*((part / moments.prompts).to(device) for part in (moments.cross, unpack(moments.paired))))


def centres(tokens: Tensor, generator: torch.Generator, count: int = CENTRES) -> Tensor:
    """k-means centres [k, d] of tokens [n, d], k = min(count, n), from k of the tokens drawn by the generator (CPU)."""
    at = torch.randperm(len(tokens), generator=generator)[:count]
    found, labels = tokens[at.to(tokens.device)], None
    for _ in range(MOST_ROUNDS):
        nearest = torch.cdist(tokens, found).argmin(dim=1)
        if labels is not None and torch.equal(nearest, labels):
            break
        labels = nearest
        # A centre without tokens stays where it is.
        own = [tokens[labels == i] for i in range(len(found))]
        found = torch.stack([part.mean(dim=0) if len(part) else old for part, old in zip(own, found, strict=True)])
    return found


def invariants(empty: Tensor, generator: torch.Generator) -> Tensor:
    """C2 of Eq. 10 as rows [1 + k, d]: start-of-text, and `centres` of the rest of the empty prompt [window, d]."""
    return torch.cat([empty[:1], centres(empty[1:], generator)])


def erasing_alone(edits: Edits) -> Tensor:
    """T - I of W' = W T, [d, d], that erases without preserving: (A - G) (G + I)^-1 (Eq. 5)."""
    system = edits.gram + torch.eye(len(edits.gram)).to(edits.gram)
    return torch.linalg.solve(system, edits.pull.T).T


def above_mean(shifts: Tensor) -> Tensor:
    """Which shifts [n] are above their mean (Eq. 6), bool [n]; all where none is, as with one or with equal ones."""
    chosen = shifts > shifts.mean()
    return chosen if chosen.any() else torch.ones_like(chosen)


def least_read(weight: Tensor) -> Tensor:
    """The right singular vector [d] of the smallest of the min(d_out, d) singular values of W (Eq. 7 with r = 1)."""
    vector = torch.linalg.svd(weight, full_matrices=False)[2][-1]
    # Its sign is free, and copies drawn by a seed should be the same everywhere.
    return vector * torch.sign(vector[vector.abs().argmax()])


def refined(
    weight: Tensor, tokens: Tensor, alone: Tensor, settings: SpeedSettings, generator: torch.Generator
) -> tuple[Tensor, int, int]:
    """(the mean of c c^T over what is preserved [d, d], tokens and copies in it) for a projection W [d_out, d].

    tokens: [n, d]. alone: `erasing_alone`. A copy is c + z v (Eq. 8), with z drawn from N(0, 1) and v of `least_read`,
    so that sums over the copies follow from sums over the tokens and none is ever made.
    """
    moved = tokens @ alone.T @ weight.T
    shifts = moved.norm(dim=1)
    if settings.filtered:
        chosen = above_mean(shifts)
        tokens, moved, shifts = tokens[chosen], moved[chosen], shifts[chosen]
    total = tokens.T @ tokens
    if not settings.augment:
        return total / len(tokens), len(tokens), 0
    vector = least_read(weight)
    step = weight @ (alone @ vector)
    z = torch.randn(len(tokens), settings.augment, generator=generator, dtype=torch.float64).to(tokens)
    squared = shifts[:, None] ** 2 + 2 * z * (moved @ step)[:, None] + z**2 * step.square().sum()
    chosen = above_mean(squared.clamp_min(0).sqrt().flatten()).view_as(z).to(z)
    times, along = chosen.sum(dim=1), (chosen * z).sum(dim=1)
    mixed = torch.outer(tokens.T @ along, vector)
    total = total + tokens.T @ (times[:, None] * tokens) + mixed + mixed.T
    total = total + (chosen * z**2).sum() * torch.outer(vector, vector)
    copies = int(times.sum())
    return total / (len(tokens) + copies), len(tokens), copies


def null_space(moment: Tensor, threshold: float) -> Tensor:
    """An orthonormal basis [d, k] of the directions along which a moment [d, d] is below the threshold (Eq. 2)."""
    values, vectors = torch.linalg.eigh(moment)
    return vectors[:, values < threshold]


def without(basis: Tensor, rows: Tensor) -> Tensor:
    """An orthonormal basis of the part of a basis' span [d, k] that is orthogonal to rows [m, d]."""
    lengths = rows.norm(dim=1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)
    _, values, right = torch.linalg.svd((rows / lengths) @ basis, full_matrices=True)
    return basis @ right[int((values > WITHIN).sum()) :].T


def constrained(weight: Tensor, edits: Edits, basis: Tensor, rows: Tensor, settings: SpeedSettings) -> Tensor:
    """Delta P of Eq. 11 for W [d_out, d], [d_out, d]. basis: of the null space [d, k]. rows: the invariants [m, d].

    Raises NoNullSpace where nothing is left to edit in.
    """
    if settings.lamb == 0:
        basis = without(basis, rows)
    if not basis.shape[1]:
        raise NoNullSpace(
            "what is preserved leaves no direction to edit in: raise threshold, or preserve fewer concepts"
        )
    system = basis.T @ edits.gram @ basis
    system.diagonal().add_(settings.retain_scale)
    if settings.lamb:
        reached = rows @ basis
        system += reached.T @ reached / settings.lamb
    wanted = weight @ edits.pull @ basis
    return torch.linalg.solve(system, wanted.T).T @ basis.T


def speed(
    weight: Tensor,
    edits: Edits,
    preserved: Preserved,
    alone: Tensor,
    settings: SpeedSettings,
    generator: torch.Generator,
) -> SpeedEdit:
    """The edit of one projection W [d_out, d], float64 on the device of `edits`.

    alone: `erasing_alone` of the same edits, which all projections share. generator: on the CPU, of the copies' draws.
    Raises NoNullSpace where what is preserved leaves nothing to edit in.
    """
    weight = in_float64(weight, edits.gram.device)
    moment, kept, copies = refined(weight, preserved.tokens, alone, settings, generator)
    basis = null_space(moment, settings.threshold)
    change = constrained(weight, edits, basis, preserved.invariants, settings)
    return SpeedEdit(change, kept, copies, basis.shape[1])
