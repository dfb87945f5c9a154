"""Scaling the loss where the model computes in fp16, so that no gradient is silently lost.

The policy of everything that trains, MACE and the baselines alike. What is trained is float32, and so is what computes
with it: MACE's keys and values with their LoRA (see mace.pipeline.attention_loss), and a baseline's layers with their
weights. In bf16 a weight of 0.02 has steps of 0.0001, in fp16 of 0.00002, and the first steps at a rate of 1e-5 would
leave the forward pass as it was. The rest of the model computes in the dtype the host gives it, and gets what comes of
a trained layer in that dtype.

The gradients' range: bf16 and float32 reach as far down as gradients do and need nothing. In fp16 what lies below 6e-8
becomes 0, so the loss is multiplied by a power of two before the backward pass and the gradients are divided by it
after, which changes no digit of them. A backward pass that overflows is made again with a smaller factor: no step is
left out. fp8 weights are computed with in the host's wider dtype, and fall under the same rule.

One exception: where another pack has a replace patch at a cross-attention, that patch computes the attention, and is
given keys and values with their LoRA in the model's dtype, as in sampling. The loss of that layer is taken in float32
all the same; what the layer hands on sees a LoRA as far as the model's dtype tells it from nothing.
"""

import torch
from torch import Tensor

FIRST, LEAST, BACKOFF = 2.0**16, 2.0**-24, 2.0**-3


class LossScale:
    """A factor for each of `count` losses that do not see each other; 1 unless `dtype` is fp16."""

    def __init__(self, count: int, dtype: torch.dtype, device: torch.device | str = "cpu"):
        first = FIRST if dtype == torch.float16 else 1.0
        self._least = LEAST if dtype == torch.float16 else 1.0
        self.factors = torch.full((count,), first, dtype=torch.float32, device=device)

    def scaled(self, losses: Tensor) -> Tensor:
        """The scalar to run backward from, of losses [count]."""
        return (losses * self.factors.to(losses.dtype)).sum()

    def unscale(self, gradients: list[Tensor]) -> None:
        """Divide gradients [count, ...], one row a loss, by their factors, in place."""
        for gradient in gradients:
            gradient.div_(self.factors.to(gradient.dtype).view(-1, *[1] * (gradient.dim() - 1)))

    def fits(self, norms: Tensor) -> bool:
        """Whether all gradients, by their norms [count], are finite. If not, the factors of those that are not are
        lowered, and the same step has to be made again.

        Raises ValueError when a gradient is not finite at the smallest factor either: then it is not a matter of range.
        """
        over = ~torch.isfinite(norms.to(self.factors.device))
        if not over.any():
            return True
        self.factors[over] *= BACKOFF
        if (self.factors[over] < self._least).any():
            raise ValueError("the gradient is not finite")
        return False
