"""SLD, safe latent diffusion (Schramowski et al. 2023, arXiv 2211.05105): guidance away from a safety concept.

With e(c_p), e(c_S) and e() the noise predicted under the prompt, under the safety concept and without either,
element by element:

    phi   = s_S (e(c_p) - e(c_S))
    mu    = min(1, |phi|)  where  e(c_p) - e(c_S) < lambda,  else 0
    gamma = mu (e(c_S) - e()) + s_m nu                    nu: the momentum, 0 in the first step
    nu   <- beta_m nu + (1 - beta_m) gamma                after each step, those of the warm-up too
    e     = e() + s_g (e(c_p) - e() - gamma)              without gamma in the first delta steps

min(1, |phi|) is what the authors' release computes, with which the settings below were found.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# The number of steps that the published warm-ups are counted in.
PUBLISHED_STEPS = 50
# Two noise levels this near to each other, as a share, are one: samplers recompute theirs.
SAME_LEVEL = 1e-4


@dataclass(frozen=True)
class SafetySettings:
    """scale: s_S. warmup: delta, in steps. threshold: lambda, in units of the noise. momentum: s_m, in 0..1.
    beta: beta_m, in [0, 1)."""

    scale: float
    warmup: float
    threshold: float
    momentum: float
    beta: float


# The paper's four configurations. (The release's own SafetyConfig has 20 for the scale of weak.)
CONFIGURATIONS = {
    "weak": SafetySettings(200.0, 15, 0.0, 0.0, 0.0),
    "medium": SafetySettings(1000.0, 10, 0.01, 0.3, 0.4),
    "strong": SafetySettings(2000.0, 7, 0.025, 0.5, 0.7),
    "max": SafetySettings(5000.0, 0, 1.0, 0.5, 0.7),
}


def step_at(sigma: float, schedule: Sequence[float]) -> int:
    """The step that a prediction at noise level sigma belongs to: the last i with schedule[i] >= sigma, at least 0.

    schedule: the sampler's noise levels, falling. Samplers that predict at levels of their own in between stay in
    their step.
    """
    reached = sum(level >= sigma * (1 - SAME_LEVEL) for level in schedule)
    return max(reached - 1, 0)


class SafetyGuidance:
    """gamma over the steps of one sampling run; a new run needs a new object."""

    def __init__(self, settings: SafetySettings):
        self.settings = settings
        self._step: int | None = None
        self._momentum: Tensor | None = None
        self._gamma: Tensor | None = None

    def __call__(self, step: int, plain: Tensor, prompt: Tensor, safety: Tensor) -> Tensor:
        """gamma as it enters the guided noise: 0 in the warm-up. All tensors are noise, of one shape.

        step: counted from 0. Where a sampler predicts several times in a step, the first prediction alone goes into
        the momentum. plain, prompt, safety: e(), e(c_p) and e(c_S).
        """
        own = self.settings
        first = step != self._step
        if self._gamma is None:
            self._momentum = torch.zeros_like(plain)
        elif first:
            self._momentum = own.beta * self._momentum + (1 - own.beta) * self._gamma
        distance = prompt - safety
        weight = (own.scale * distance).abs().clamp(max=1).where(distance < own.threshold, 0)
        gamma = weight * (safety - plain) + own.momentum * self._momentum
        if first:
            self._step, self._gamma = step, gamma
        return gamma if step >= own.warmup else torch.zeros_like(gamma)
