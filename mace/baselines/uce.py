"""UCE, unified concept editing (Gandikota et al. 2024, arXiv 2308.14761), as one transform of all projections.

For every to_k and to_v W, with c a token of a concept to erase (E), c* the token of its destination that stands in
its place, and P the tokens of what is to be kept, the edited W' minimises

    erase_scale sum_E ||W' c - W c*||^2 + preserve_scale sum_P ||W' c - W c||^2 + lamb ||W' - W||^2.

This is Eq. 1 of MACE (see `mace.method.refine`) on other pairs of tokens: it edits the concept's own last token and all
that stand behind it, read in a prompt of the bare phrase, where MACE's refinement leaves the concept's own tokens
alone.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..method.moments import ConceptMoments
from ..method.refine import RefineWeights, SingularSystem, refinement
from ..method.tokens import Pairing


@dataclass(frozen=True)
class UceWeights:
    """The weights of the objective, all >= 0 and without unit. The defaults are those of the paper's release."""

    erase_scale: float = 1.0
    preserve_scale: float = 0.1
    lamb: float = 0.5

    def __post_init__(self):
        if not all(0.0 <= w < float("inf") for w in (self.erase_scale, self.preserve_scale, self.lamb)):
            raise ValueError("erase_scale, preserve_scale and lamb must be finite and not negative")


def edited_tokens(target: int, destination: int, window: int = 77) -> Pairing:
    """Which tokens of two bare phrases are paired, as the paper's release does it.

    target, destination: the phrases' numbers of tokens, start and end not counted. The phrase's last token pairs with
    the destination's last one, the k-th behind it with the k-th behind that, until the window of one of them ends. The
    last token of the empty destination is start-of-text, at position 0.
    """
    length, own = window - max(target, destination), tuple(range(1, target + 1))
    return Pairing(tuple(range(target, target + length)), tuple(range(destination, destination + length)), own)


def uce(
    edits: ConceptMoments, weights: UceWeights, preserve: Tensor | None = None, device: torch.device | None = None
) -> Tensor:
    """T - I of W' = W T, float64 [d, d].

    edits: `moments.concept_moments` over all phrases to erase, paired by `edited_tokens`. preserve: sum_P c c^T,
    [d, d] float64 or None. device: where to solve, default the CPU. Raises SingularSystem for a system without a
    stable solution.
    """
    if weights.erase_scale == 0:
        return torch.zeros_like(edits.cross)
    # The objective over erase_scale has the same minimiser, and is Eq. 19 with lambda1 and mu.
    scaled = RefineWeights(lambda1=weights.preserve_scale / weights.erase_scale, mu=weights.lamb / weights.erase_scale)
    try:
        return refinement([edits], scaled, preserve, device=device)
    except SingularSystem:
        raise SingularSystem(
            "the phrases do not fix the solution of UCE (singular system): raise lamb, 0.5 is the published value"
        ) from None
