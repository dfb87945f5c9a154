"""Concept-focal importance sampling of timesteps (Eq. 5)."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Cfis:
    """xi(t) = (sigmoid(gamma (t - t1)) - sigmoid(gamma (t - t2))) / Z over the integers 0..steps-1 (Eq. 5)."""

    t1: int = 200
    t2: int = 400
    gamma: float = 0.05

    def density(self, steps: int = 1000) -> Tensor:
        """Probabilities of t = 0..steps-1, float64 [steps], summing to 1."""
        t = torch.arange(steps, dtype=torch.float64)
        xi = torch.sigmoid(self.gamma * (t - self.t1)) - torch.sigmoid(self.gamma * (t - self.t2))
        return xi / xi.sum()

    def sample(self, count: int, generator: torch.Generator, steps: int = 1000) -> Tensor:
        """`count` timesteps drawn from the density, int64 [count]."""
        return torch.multinomial(self.density(steps), count, replacement=True, generator=generator)
