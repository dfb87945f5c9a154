"""Slow, obvious, independent computations of the paper's closed forms, in float64. Nothing here imports mace.

The objective is Eq. 1, extended by the concepts to preserve (Eq. 19) and by ||W' - W||^2 (Appendix C.2), as a loop
over tokens for one projection W. The closed forms printed in Eq. 12-16 and 19 write W e^f where the objective has
W e^g, which gives W' = W; so the minimiser is found from the objective itself, by least squares.

Tokens are rows: f, g [n, d] hold e^f and e^g, prior [m, d] and preserve [k, d] hold e^p.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


def none(width: int) -> Tensor:
    """No tokens."""
    return torch.zeros(0, width, dtype=torch.float64)


@dataclass(frozen=True)
class Problem:
    """The tokens and the weights of one refinement; it is the same for every projection."""

    f: Tensor
    g: Tensor
    prior: Tensor
    preserve: Tensor
    lambda1: float = 0.0
    lambda3: float = 0.0
    mu: float = 0.0
    kept: tuple[tuple[float, Tensor], ...] = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "kept", ((self.lambda1, self.prior), (self.lambda3, self.preserve)))


def objective(new: Tensor, weight: Tensor, problem: Problem) -> Tensor:
    """Eq. 1 with the terms of Eq. 19 and Appendix C.2, for W' = new and W = weight, both [d_out, d]. A scalar."""
    loss = problem.mu * ((new - weight) ** 2).sum()
    for e_f, e_g in zip(problem.f, problem.g, strict=True):
        loss = loss + ((new @ e_f - weight @ e_g) ** 2).sum()
    for factor, tokens in problem.kept:
        for e_p in tokens:
            loss = loss + factor * ((new @ e_p - weight @ e_p) ** 2).sum()
    return loss


def gradient(new: Tensor, weight: Tensor, problem: Problem) -> Tensor:
    """The gradient of the objective with respect to W' at `new`, by autograd."""
    at = new.detach().clone().requires_grad_(True)
    objective(at, weight, problem).backward()
    return at.grad


def minimiser(weight: Tensor, problem: Problem) -> Tensor:
    """The W' that minimises the objective: least squares over one row a token, scaled by the root of its weight.

    The rows say: e_f^T W'^T = (W e_g)^T, and so on; mu adds the rows sqrt(mu) W'^T = sqrt(mu) W^T.
    """
    eye = torch.eye(weight.shape[1], dtype=torch.float64)
    rows, wanted = [problem.f], [problem.g @ weight.T]
    for factor, tokens in (*problem.kept, (problem.mu, eye)):
        rows.append(factor**0.5 * tokens)
        wanted.append(factor**0.5 * tokens @ weight.T)
    return torch.linalg.lstsq(torch.cat(rows), torch.cat(wanted), driver="gelsd").solution.T


def per_layer(weight: Tensor, problem: Problem) -> Tensor:
    """Eq. 2 and 19 for one projection, with each key (or value) W e materialised, and no other matrix shared."""
    width = weight.shape[1]
    left = problem.mu * weight
    right = problem.mu * torch.eye(width, dtype=torch.float64)
    for e_f, e_g in zip(problem.f, problem.g, strict=True):
        left = left + torch.outer(weight @ e_g, e_f)
        right = right + torch.outer(e_f, e_f)
    for factor, tokens in problem.kept:
        for e_p in tokens:
            left = left + factor * torch.outer(weight @ e_p, e_p)
            right = right + factor * torch.outer(e_p, e_p)
    return torch.linalg.solve(right, left, left=False)


def between(f: Tensor, g: Tensor, strength: float) -> Tensor:
    """The target of a concept at a strength: e_f + s (e_g - e_f), so that W' e_f goes s of the way to W e_g."""
    return f + strength * (g - f)


def outer_sum(left: Iterable[Tensor], right: Iterable[Tensor], width: int) -> Tensor:
    """sum a b^T over pairs of tokens, [width, width], one element of each token at a time."""
    total = torch.zeros(width, width, dtype=torch.float64)
    for a, b in zip(left, right, strict=True):
        for i in range(width):
            for j in range(width):
                total[i, j] += a[i].double() * b[j].double()
    return total


def paired_tokens(
    targets: Tensor, mappings: Tensor, positions: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> tuple[list[Tensor], list[Tensor]]:
    """(e_f, e_g) of every pair of prompts [B, N, d]; positions: per prompt (target's, mapping's)."""
    f, g = [], []
    for prompt, (of_target, of_mapping) in enumerate(positions):
        for i, j in zip(of_target, of_mapping, strict=True):
            f.append(targets[prompt, i].double())
            g.append(mappings[prompt, j].double())
    return f, g
