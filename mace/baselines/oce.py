"""OCE, orthogonal concept erasure (Sun et al. 2026, arXiv 2605.28902): one orthogonal matrix on every projection.

A projection W [d_out, d] becomes Q W with Q^T Q = I: what it makes of tokens keeps its lengths and all angles between
them. With R the projector on the space that W makes of the tokens to erase, R* of their anchors, C0 the tokens to
preserve one by one and K0 = E[c c^T] over the tokens of general captions, the method maximises a trace over Q of

    M = -erase_scale R (I - R*) + W (preserve_scale C0 C0^T + global_scale K0 + lamb I) W^T,

by one singular value decomposition (orthogonal Procrustes): with M = U S V^T, Q = U V^T maximises tr(Q^T M).

The paper derives M from two terms, -||Q R - (I - R*)||^2 for what is erased and ||Q W c - W c||^2 for what is kept. The
first asks for the largest tr(Q M), which Q = V U^T reaches, the inverse of the Q that the paper and its release print;
the second, where M is symmetric, has one answer for both. PUBLISHED is the printed one, DERIVED the other.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..method.moments import in_float64
from ..method.refine import SingularSystem

PUBLISHED, DERIVED = "published", "derived"
SOLUTIONS = (PUBLISHED, DERIVED)
# Singular values below this share of the largest count as 0 where a space's dimension is asked for.
RANK = 1e-6
# What else the release reads of one concept and of its anchor, besides the phrase.
OBJECT_TEMPLATES = ("image of {}", "photo of {}", "portrait of {}", "picture of {}", "painting of {}")
STYLE_TEMPLATES = ("painting by {}", "art by {}", "artwork by {}", "picture by {}", "style of {}")


@dataclass(frozen=True)
class OceWeights:
    """The weights in M, all >= 0. The defaults are those of the release's script for objects.

    erase_scale is in squared units of what W makes of a token, the others have no unit.
    """

    erase_scale: float = 2000.0
    preserve_scale: float = 0.0
    global_scale: float = 10.0
    lamb: float = 10.0

    def __post_init__(self):
        weights = (self.erase_scale, self.preserve_scale, self.global_scale, self.lamb)
        if not all(0.0 <= w < float("inf") for w in weights):
            raise ValueError("erase_scale, preserve_scale, global_scale and lamb must be finite and not negative")


def published_weights(kind: str, count: int) -> OceWeights:
    """The weights of the release's scripts for concepts of a type; of celebrities they depend on how many."""
    if kind == "celebrity":
        if count <= 10:
            return OceWeights(3500.0, 5.0, 50.0)
        return OceWeights(1500.0, 2.5, 70.0) if count <= 50 else OceWeights(800.0, 2.0, 70.0)
    return {"style": OceWeights(500.0, 1.0, 10.0), "explicit": OceWeights(3000.0, 0.0, 20.0)}.get(kind, OceWeights())


def published_templates(kind: str) -> tuple[str, ...]:
    """The prompts that the release's scripts read concepts of a type in, besides the bare phrase."""
    return {"style": STYLE_TEMPLATES, "celebrity": ()}.get(kind, OBJECT_TEMPLATES)


def span(weight: Tensor, tokens: Tensor) -> Tensor:
    """An orthonormal basis [d_out, r] of what W [d_out, d] makes of tokens [n, d], each brought to length 1.

    Tokens that depend on others, such as an anchor that several concepts share, count once. Raises ValueError where W
    makes nothing of any of them.
    """
    images = tokens @ weight.T
    images = images / images.norm(dim=1, keepdim=True).clamp_min(torch.finfo(images.dtype).tiny)
    left, values, _ = torch.linalg.svd(images.T, full_matrices=False)
    rank = int((values > RANK * values[0]).sum()) if len(values) else 0
    if not rank:
        raise ValueError("there is nothing to erase, or the layer makes nothing of it")
    return left[:, :rank]


def kept_moment(
    general: Tensor, preserve: Tensor | None, weights: OceWeights, device: torch.device | None = None
) -> Tensor:
    """preserve_scale C0 C0^T + global_scale K0 + lamb I, float64 [d, d].

    general: K0, preserve: C0 C0^T, [d, d]; None for nothing to preserve.
    """
    kept = weights.global_scale * general.to(device, torch.float64)
    kept.diagonal().add_(weights.lamb)
    return kept if preserve is None else kept + weights.preserve_scale * preserve.to(kept)


def objective(weight: Tensor, erased: Tensor, anchors: Tensor, kept: Tensor, erase_scale: float) -> Tensor:
    """M, [d_out, d_out], of a projection W [d_out, d].

    erased, anchors: tokens [n, d] and [m, d]. kept: `kept_moment`.
    """
    own, other = span(weight, erased), span(weight, anchors)
    # R (I - R*), with R = own own^T and R* = other other^T.
    turned = own @ (own.T - (own.T @ other) @ other.T)
    return weight @ kept @ weight.T - erase_scale * turned


def rotation(matrix: Tensor, solution: str = PUBLISHED) -> Tensor:
    """The orthogonal Q [n, n] of a square matrix M, which maximises tr(Q^T M), of DERIVED tr(Q M).

    It may reflect: the method asks for Q^T Q = I alone. Raises SingularSystem where M does not fix it, ValueError for
    an unknown solution.
    """
    if solution not in SOLUTIONS:
        raise ValueError(f"the solution is {' or '.join(SOLUTIONS)}, not {solution!r}")
    left, values, right = torch.linalg.svd(matrix)
    if not values[-1] > 100 * len(values) * torch.finfo(values.dtype).eps * values[0]:
        raise SingularSystem("what is kept does not fix the rotation (singular system): raise lamb or global_scale")
    turned = left @ right
    return turned if solution == PUBLISHED else turned.T


def oce(
    weight: Tensor, erased: Tensor, anchors: Tensor, kept: Tensor, erase_scale: float, solution: str = PUBLISHED
) -> Tensor:
    """W' - W = (Q - I) W of one projection W [d_out, d], float64 on the device of `kept`.

    erased, anchors: tokens [n, d] and [m, d] float64. kept: `kept_moment`. Raises as `rotation` and `span` do.
    """
    weight = in_float64(weight, kept.device)
    if erase_scale == 0:
        return torch.zeros_like(weight)
    if weight.shape[0] <= weight.shape[1]:
        return rotation(objective(weight, erased, anchors, kept, erase_scale), solution) @ weight - weight
    # M is 0 outside what W reaches, where any Q would do: it is found within, by coordinates in an orthonormal basis.
    basis, inner = torch.linalg.qr(weight)
    turned = rotation(objective(inner, erased, anchors, kept, erase_scale), solution)
    return basis @ (turned @ inner - inner)
