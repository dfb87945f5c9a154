"""The training loop of the baselines: chosen weights in float32, one optimizer, a seeded stream of draws."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..method.precision import LossScale
from ..method.train import stream


@dataclass(frozen=True)
class Fit:
    """steps: of the optimizer.  weight_decay: of AdamW; 0 is Adam.  clip: the largest norm of the gradient over all
    weights, None for any.  seed: of the draws."""

    steps: int
    learning_rate: float
    weight_decay: float = 0.0
    clip: float | None = None
    seed: int = 0

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError("there must be at least one step")
        if not (self.learning_rate > 0 and self.weight_decay >= 0 and (self.clip is None or self.clip > 0)):
            raise ValueError("learning rate and clip must be above 0, weight decay at least 0")


def fit(
    weights: Mapping[str, Tensor],
    loss_of: Callable[[torch.Generator], Tensor],
    settings: Fit,
    report: Callable[[int, Tensor], None] = lambda step, loss: None,
    computes_in: torch.dtype = torch.float32,
) -> Tensor:
    """Train the weights in place; returns the losses [steps], on the CPU.

    weights: leaves that require a gradient, by name.  loss_of: draws from the generator (on the CPU, so that draws are
    the same on every device) -> a scalar, differentiable in the weights. A weight the loss does not depend on stays as
    it is to the bit.  report(step, loss) is called after each step and may raise to stop.  computes_in: the model's
    dtype (see mace.method.precision). Raises ValueError when a loss or a gradient is not finite.
    """
    optimizer = torch.optim.AdamW(list(weights.values()), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    generator = stream(settings.seed, "baseline", "draws")
    history = []
    leaves = list(weights.values())
    scale = LossScale(1, computes_in, leaves[0].device)
    for step in range(1, settings.steps + 1):
        drawn_from = generator.get_state()
        while True:
            # The same draws again where a backward pass overflowed.
            generator.set_state(drawn_from)
            loss = loss_of(generator)
            if not torch.isfinite(loss):
                raise ValueError(f"the loss is not finite in step {step}; lower the learning rate")
            optimizer.zero_grad(set_to_none=True)
            scale.scaled(loss[None]).backward()
            scale.unscale([leaf.grad[None] for leaf in leaves if leaf.grad is not None])
            norm = torch.nn.utils.clip_grad_norm_(leaves, settings.clip or torch.inf)
            try:
                if scale.fits(norm[None]):
                    break
            except ValueError as error:
                raise ValueError(f"{error} in step {step}; lower the learning rate") from None
        optimizer.step()
        history.append(loss.detach().float().cpu())
        report(step, history[-1])
    return torch.stack(history)
