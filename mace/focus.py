"""Focus: an erasure LoRA that reads what is the concept's own, and little of what all prompts share.

A rank-r A starts at random and turns little in some tens of steps. B A then also moves what every prompt holds (start
of text, the mean of the padding, common words), and fusion has to choose between erasing the concept and keeping the
rest. With the concept's moment S and the prior's P, both of Eq. 7,

    K = S (S + w P + mu I)^-1

keeps of an embedding e what the concept's prompts explain and captions do not: K e is near e along directions that the
captions lack and near 0 along those they hold. A LoRA trained as B A K e is the ordinary LoRA B (A K). This is ours,
not the paper's; at w = 0 training is the paper's.
"""

import torch
from torch import Tensor

from .moments import unpack, working_device
from .refine import solve_right

# Embeddings have norms of tens, their sums over a concept's prompts of thousands: this only steadies the solve.
MU = 1.0


def focus(total: Tensor, prior: Tensor, weight: float, device: torch.device | None = None) -> Tensor:
    """K [d, d], float64 on the CPU.

    total: S, packed (see `ConceptMoments.total`).  prior: P [d, d] float64, scaled as in `Prior.general_moment`.
    weight: w, above 0 and without unit.  device: where to solve, default the CPU. Raises ValueError for another weight.
    """
    if not 0 < weight < float("inf"):
        raise ValueError(f"the focus must be above 0 and finite, not {weight}")
    moment = unpack(total.to(working_device(device or torch.device("cpu"))))
    system = moment + weight * prior.to(moment)
    system.diagonal().add_(MU)
    return solve_right(moment, system, "focus").cpu()


def focused(embeddings: Tensor, matrix: Tensor) -> Tensor:
    """K e for embeddings [..., d], in their own dtype."""
    return (embeddings.to(matrix) @ matrix.mT).to(embeddings.dtype)
