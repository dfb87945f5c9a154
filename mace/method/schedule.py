"""Timesteps to train at: concept-focal importance sampling (CFIS, Eq. 5), or all alike.

Both are frozen dataclasses with the same `density` and `sample`. t counts the steps of the model's noise
schedule, 0 (no noise) to steps - 1 (all noise); Stable Diffusion has 1000.
"""

from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


class Timesteps:
    """A distribution over the integers 0..steps-1."""

    def density(self, steps: int = 1000) -> Tensor:
        """The probability of every t, float64 [steps], summing to 1."""
        raise NotImplementedError

    def sample(self, count: int, generator: torch.Generator, steps: int = 1000) -> Tensor:
        """`count` independent timesteps, int64 [count]. generator: a stream on the CPU."""
        return torch.multinomial(self.density(steps), count, replacement=True, generator=generator)


@dataclass(frozen=True)
class Cfis(Timesteps):
    """xi(t) = (sigmoid(gamma (t - t1)) - sigmoid(gamma (t - t2))) / Z (Eq. 5), Z exact over the integers.

    t1, t2: the ends of the interval where most is drawn, 0 <= t1 < t2.  gamma: how steeply it falls off
    beyond them, above 0. Raises ValueError for values out of range.
    """

    t1: int = 200
    t2: int = 400
    gamma: float = 0.05

    def __post_init__(self):
        if not 0 <= self.t1 < self.t2:
            raise ValueError(f"t1 must be at least 0 and below t2, not t1 = {self.t1} and t2 = {self.t2}")
        if not (self.gamma > 0 and isfinite(self.gamma)):
            raise ValueError(f"gamma must be above 0 and finite, not {self.gamma}")

    def density(self, steps: int = 1000) -> Tensor:
        """The probability of every t, float64 [steps], summing to 1. Raises ValueError for t2 above `steps`.

        sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - e^(b - a)), and a - b = gamma (t2 - t1) is the same
        for every t: the last factor goes into Z. What is left has no difference to cancel, at any gamma.
        """
        if self.t2 > steps:
            raise ValueError(f"t2 = {self.t2} lies beyond the {steps} timesteps of the model")
        t = torch.arange(steps, dtype=torch.float64)
        return torch.softmax(logsigmoid(self.gamma * (t - self.t1)) + logsigmoid(self.gamma * (self.t2 - t)), dim=0)


@dataclass(frozen=True)
class Uniform(Timesteps):
    """Every timestep alike: training without CFIS."""

    def density(self, steps: int = 1000) -> Tensor:
        """1 / steps for every t, float64 [steps]. Raises ValueError without a timestep."""
        if steps < 1:
            raise ValueError(f"there must be at least one timestep, not {steps}")
        return torch.full((steps,), 1 / steps, dtype=torch.float64)
