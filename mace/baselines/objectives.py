"""What ESD and Concept Ablation minimise, and the partial denoising ESD trains on.

eps stands for a model's noise prediction. `Predict` is (x [B, ch, h, w], sigma [B], prompts [B]) -> eps like x, where
x = x0 + sigma noise and prompts are whatever the caller knows its prompts by, such as row numbers.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Predict = Callable[[Tensor, Tensor, Tensor], Tensor]


def both(predict: Predict, x: Tensor, sigma: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """eps for two prompts a sample, in one forward pass."""
    return predict(torch.cat([x, x]), torch.cat([sigma, sigma]), torch.cat([first, second])).chunk(2)


def esd_loss(
    edited: Predict, original: Predict, x: Tensor, sigma: Tensor, concept: Tensor, nothing: Tensor, eta: float
) -> Tensor:
    """ESD (arXiv 2303.07345): mean of (eps(x, c) - [eps*(x) - eta (eps*(x, c) - eps*(x))])^2.

    edited: eps of the model in training.  original: eps* of the model as it was.  concept: the prompts c.  nothing:
    the empty prompt for each sample.  eta: the negative guidance, 1 in the paper.
    """
    with torch.no_grad():
        unguided, guided = both(original, x, sigma, nothing, concept)
        wanted = unguided - eta * (guided - unguided)
    return F.mse_loss(edited(x, sigma, concept), wanted)


def ablation_loss(edited: Predict, x: Tensor, sigma: Tensor, target: Tensor, anchor: Tensor) -> Tensor:
    """Concept Ablation, model-based (arXiv 2303.13516, with w_t = 1): mean of (eps(x, c*) - sg[eps(x, c)])^2.

    x: noised images of the anchor prompts.  target: prompts c* with the target phrase.  anchor: the same prompts c with
    the anchor phrase. The anchor's prediction is the model's own in training, without a gradient (sg).
    """
    with torch.no_grad():
        wanted = edited(x, sigma, anchor)
    return F.mse_loss(edited(x, sigma, target), wanted)


def descent(steps: int, last: int, total: int = 1000) -> list[int]:
    """Timesteps from total - 1 down to `last`: those of `steps` evenly spaced ones that lie above it, then itself.

    Raises ValueError unless 0 <= last < total and steps >= 1.
    """
    if not (0 <= last < total and steps >= 1):
        raise ValueError(f"{steps} steps cannot lead to timestep {last} of {total}")
    spaced = (total - 1 - round(place * total / steps) for place in range(steps))
    return [t for t in spaced if t > last] + [last]


@torch.no_grad()
def denoised(
    predict: Predict, x: Tensor, sigmas: Sequence[float], prompts: Tensor, nothing: Tensor, guidance: float
) -> Tensor:
    """x at the last of the falling sigmas, from x at the first, by DDIM without noise (eta 0).

    In x = x0 + sigma noise DDIM is x' = x + (sigma' - sigma) eps, with eps = eps(x) + guidance (eps(x, c) - eps(x)).
    """
    for sigma, following in zip(sigmas, sigmas[1:], strict=False):
        unguided, guided = both(predict, x, x.new_full((len(x),), sigma), nothing, prompts)
        x = x + (following - sigma) * (unguided + guidance * (guided - unguided))
    return x
