"""Closed-form cross-attention refinement (Eq. 1, 2 and 19) as one transform of all projections.

Every to_k and to_v is refined by the same d x d matrix,

    T = (A + l1 P + l3 D + mu I) (G + l1 P + l3 D + mu I)^-1,        W' = W T,

since W stands on the left of every term of Eq. 19. With strengths s_i the sums run over the concepts with
s_i > 0, and T(s) = I + sum_i s_i (A_i - G_i) (G + l1 P + l3 D + mu I)^-1. What is computed and kept is
T - I, so that a small refinement does not drown in the rounding of one. Another metric R than the paper's I
(see `reading`) stands in its place.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..concepts.concept import Concept
from .moments import unpack, working_device
from .prior import Prior
from .sums import Moments, change_sums, pooled_of

# What mu measures a change in: the embedding's directions all alike (the paper), or as the model reads them.
ALIKE, READING = "alike", "reading"
METRICS = (ALIKE, READING)


NOT_FINITE = "the moments hold values that are not finite; check the text encoder and the prior"


class SingularSystem(ValueError):
    """The system of a closed form has no stable solution; the message names the cure."""


@dataclass(frozen=True)
class RefineWeights:
    """The weights of Eq. 19: lambda1 of the general prior, lambda3 of the concepts to preserve, mu of
    ||W' - W||^2 (Appendix C.2, objects). All are >= 0 and without unit. metric: one of METRICS, what mu measures in;
    the fusion of Eq. 7 and the focus of training measure in it too."""

    lambda1: float = 0.0
    lambda3: float = 0.0
    mu: float = 0.0
    metric: str = ALIKE

    def __post_init__(self):
        if self.metric not in METRICS:
            raise ValueError(f"the metric is {' or '.join(METRICS)}, not {self.metric!r}")


@dataclass(frozen=True)
class LowRank:
    """A [d, d] matrix left @ right, with left [d, n] and right [n, d]."""

    left: Tensor = field(repr=False)
    right: Tensor = field(repr=False)

    def norm(self) -> Tensor:
        """Its Frobenius norm."""
        return ((self.left.T @ self.left) * (self.right @ self.right.T)).sum().clamp_min(0).sqrt()

    def cpu(self) -> "LowRank":
        """The same on the CPU."""
        return LowRank(self.left.cpu(), self.right.cpu())


@dataclass(frozen=True)
class Refinement:
    """A refinement and all that a later solve needs: other strengths or weights, or the fusion of Eq. 7.

    transform_delta: T - I at strength 1, float64 [d, d] on the CPU, of very wide texts as factors.  moments: one a
    concept.  strength: the
    one strength of all concepts (0..1).  fingerprint: of the text encoder (see `prior.probe`).
    projections: "keys", "values" or "both".  settings: the weights as the artist gave them, for the record.
    clip_layer: the text encoder's output layer (clip skip), None for its own default.  pooled_delta: T - I of the
    pooled text (see `pooled_refinement`), float64 [c, c] on the CPU; None where it is read as before.  own_words:
    whether the moments pair the concepts' own tokens too.  other_deltas: T - I of each further text, as
    `transform_delta`.  whole_prior: the prior before it stepped aside for these concepts, None where it did not.
    """

    concepts: tuple[Concept, ...]
    moments: Moments
    prior: Prior | None
    weights: RefineWeights
    strength: float
    projections: str
    settings: Mapping[str, str]
    transform_delta: Tensor | LowRank = field(repr=False)
    fingerprint: Tensor = field(repr=False)
    clip_layer: int | None = None
    pooled_delta: Tensor | None = field(default=None, repr=False)
    own_words: bool = False
    other_deltas: tuple[Tensor | LowRank, ...] = field(default=(), repr=False)
    whole_prior: Prior | None = None


def add_scaled_metric(system: Tensor, mu: float, metric: Tensor | None) -> None:
    """Add mu R to a system [d, d] in place. metric: R, None for I."""
    if metric is None:
        system.diagonal().add_(mu)
    else:
        system.add_(metric.to(system), alpha=mu)


def solve_right(numerator: Tensor, system: Tensor, prior_weight: str = "lambda1") -> Tensor:
    """numerator @ system^-1 for a symmetric positive definite system [d, d], by Cholesky; see `factorise`."""
    return solve_rows(numerator, factorise(system, prior_weight))


def solve_rows(rows: Tensor, factor: Tensor) -> Tensor:
    """rows @ system^-1 by the system's factor. Raises SingularSystem for rows that are not finite."""
    if not torch.isfinite(rows).all():
        raise SingularSystem(NOT_FINITE)
    return torch.cholesky_solve(rows.mT, factor).mT


def factorise(system: Tensor, prior_weight: str = "lambda1") -> Tensor:
    """The Cholesky factor of a symmetric positive definite system [d, d].

    prior_weight: the name of the prior's weight in the system, for the cure that an error names. Raises
    SingularSystem when the factor does not exist or is too ill-conditioned to trust.
    """
    if not torch.isfinite(system).all():
        raise SingularSystem(NOT_FINITE)
    factor, failed = torch.linalg.cholesky_ex(system)
    diagonal = factor.diagonal()
    # The squared ratio of the factor's diagonal bounds the condition number from below.
    limit = 100 * system.shape[-1] * torch.finfo(system.dtype).eps
    if failed.any() or (diagonal.min() / diagonal.max()) ** 2 < limit:
        raise SingularSystem(
            "the concepts' prompts do not fix the solution (singular system): raise mu, or connect a prior and "
            f"raise {prior_weight}"
        )
    return factor


def refinement(
    concepts: Moments,
    weights: RefineWeights,
    prior: Tensor | None = None,
    preserve: Tensor | None = None,
    strengths: Sequence[float] | None = None,
    device: torch.device | None = None,
    metric: Tensor | None = None,
) -> Tensor:
    """T - I of Eq. 19, float64 [d, d].

    prior: P, preserve: D, both [d, d] float64 or None. strengths: one a concept in 0..1, default all 1; a
    concept at 0 leaves the sums. device: where to solve, default the CPU. metric: R, see `reading`; None for the
    paper's I. Raises ValueError for weights or strengths out of range, SingularSystem for a system without a stable
    solution.
    """
    strengths = [1.0] * len(concepts) if strengths is None else list(strengths)
    if len(strengths) != len(concepts):
        raise ValueError(f"{len(strengths)} strengths for {len(concepts)} concepts")
    if not all(0.0 <= s <= 1.0 for s in strengths):
        raise ValueError("a strength lies outside 0..1")
    if not all(0.0 <= w < float("inf") for w in (weights.lambda1, weights.lambda3, weights.mu)):
        raise ValueError("lambda1, lambda3 and mu must be finite and not negative")
    if not any(strengths):
        raise ValueError("no concept with a strength above 0: there is nothing to refine")
    where = working_device(device or torch.device("cpu"))
    numerator, paired = change_sums(concepts, strengths, where)
    system = unpack(paired)
    add_scaled_metric(system, weights.mu, metric)
    for weight, moment in ((weights.lambda1, prior), (weights.lambda3, preserve)):
        if weight and moment is not None:
            system += weight * moment.to(where)
    return solve_right(numerator, system)


def pooled_refinement(
    concepts: Moments,
    weights: RefineWeights,
    prior: Tensor | None = None,
    preserve: Tensor | None = None,
    strengths: Sequence[float] | None = None,
    device: torch.device | None = None,
    metric: Tensor | None = None,
) -> Tensor:
    """T - I of Eq. 19 for the pooled text, float64 [c, c]: the concepts' `pooled` moments in place of the tokens'.

    prior, preserve: of pooled texts, [c, c].  metric: R of what reads the pooled text. Priors are sums over captions
    of one vector each as the concepts' are over prompts, and keep their weights. mu stands alone beside sums that are
    many times smaller here, and goes with them: mu tr(G_pooled) / tr(G), over the concepts that are refined. This is
    ours; the paper's models have no pooled text. Raises as `refinement` does.
    """
    every = zip(concepts, pooled_of(concepts), strengths or [1.0] * len(concepts), strict=True)
    active = [(own.size, pooled.size) for own, pooled, strength in every if strength > 0]
    sizes = [sum(size for _, size in active), sum(size for size, _ in active)]
    # Sums that are empty or broken are the solver's to report.
    share = sizes[0] / sizes[1] if sizes[1] > 0 else 1.0
    scaled = replace(weights, mu=weights.mu * share)
    return refinement(pooled_of(concepts), scaled, prior, preserve, strengths, device, metric)


def pooled_weight_delta(weight: Tensor, pooled_delta: Tensor) -> Tensor:
    """W' - W of the map W [d_out, c + s] that reads the pooled text [c] with the picture's sizes [s] behind it.

    T is I on the sizes: they are no text.
    """
    width = len(pooled_delta)
    change = torch.zeros_like(weight, dtype=torch.float32)
    change[:, :width] = weight_delta(weight[:, :width], pooled_delta)
    return change


def weight_delta(weight: Tensor, transform_delta: Tensor | LowRank) -> Tensor:
    """W' - W = W (T - I) of one projection W [d_out, d], as a float32 product on the weight's device."""
    if isinstance(transform_delta, Tensor):
        return weight.float() @ transform_delta.float().to(weight.device)
    left, right = (part.float().to(weight.device) for part in (transform_delta.left, transform_delta.right))
    return (weight.float() @ left) @ right
