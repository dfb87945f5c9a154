"""Slow, obvious, independent computations of the fusion (Eq. 6 and 7), in float64. Nothing here imports mace.

Eq. 7 for one projection, as a loop over tokens: W* e is drawn to (W' + s_i B_i A_i) e for every token e of every
prompt of concept i, to W e (or W' e) for the tokens of the priors, and by mu as a whole to W' or to W. Tokens are rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Part:
    """One concept's part in the fusion of one projection: its tokens e [n, d] and its LoRA's product B A [d_out, d],
    scaled by its strength."""

    tokens: Tensor
    lora: Tensor


@dataclass(frozen=True)
class Problem:
    """The fusion of one projection: W, W' and where mu draws to, all [d_out, d]; the tokens of the priors, [m, d].
    held: what reads those as they are to stay; W where it is None."""

    base: Tensor
    refined: Tensor
    centre: Tensor
    parts: Sequence[Part]
    prior: Tensor
    preserve: Tensor
    lambda2: float
    lambda3: float
    mu: float
    held: Tensor | None = None

    def rows(self):
        """(weight, token, wanted value) of every term of the sums."""
        for part in self.parts:
            for e in part.tokens:
                yield 1.0, e, (self.refined + part.lora) @ e
        for factor, tokens in ((self.lambda2, self.prior), (self.lambda3, self.preserve)):
            for e in tokens:
                yield factor, e, (self.base if self.held is None else self.held) @ e


def product(up: Tensor, down: Tensor) -> Tensor:
    """B A, one rank at a time."""
    total = torch.zeros(up.shape[0], down.shape[1], dtype=torch.float64)
    for r in range(up.shape[1]):
        total = total + torch.outer(up[:, r].double(), down[r].double())
    return total


def objective(new: Tensor, problem: Problem) -> Tensor:
    """Eq. 7 with the terms of the concepts to preserve and of mu, for W* = new [d_out, d]. A scalar."""
    loss = problem.mu * ((new - problem.centre) ** 2).sum()
    for factor, e, wanted in problem.rows():
        loss = loss + factor * ((new @ e - wanted) ** 2).sum()
    return loss


def gradient(new: Tensor, problem: Problem) -> Tensor:
    """The gradient of the objective with respect to W* at `new`, by autograd."""
    at = new.detach().clone().requires_grad_(True)
    objective(at, problem).backward()
    return at.grad


def minimiser(problem: Problem) -> Tensor:
    """The W* that minimises the objective: least squares over one row a token, scaled by the root of its weight."""
    eye = torch.eye(problem.base.shape[1], dtype=torch.float64)
    rows, wanted = [problem.mu**0.5 * eye], [problem.mu**0.5 * problem.centre.T]
    for factor, e, value in problem.rows():
        rows.append(factor**0.5 * e[None])
        wanted.append(factor**0.5 * value[None])
    return torch.linalg.lstsq(torch.cat(rows), torch.cat(wanted), driver="gelsy").solution.T


def per_layer(problem: Problem) -> Tensor:
    """The closed form of Eq. 7 for one projection, with each value materialised and no other matrix shared."""
    left = problem.mu * problem.centre
    right = problem.mu * torch.eye(problem.base.shape[1], dtype=torch.float64)
    for factor, e, wanted in problem.rows():
        left = left + factor * torch.outer(wanted, e)
        right = right + factor * torch.outer(e, e)
    return torch.linalg.solve(right, left, left=False)


def weighted_sum(refined: Tensor, products: Sequence[Tensor], omegas: Sequence[float]) -> Tensor:
    """Eq. 6: W' + sum_i omega_i B_i A_i."""
    total = refined.clone()
    for omega, lora in zip(omegas, products, strict=True):
        total = total + omega * lora
    return total
