"""Erasure LoRAs (Section 3.2, Eq. 4): a refined projection W' [d_out, d] plus B A of rank r.

B [d_out, r] is called "up", A [r, d] "down", as LoRA files do. The paper's matrices are the transposes (its
W' is d_in x d_out, and its D our A); the product is the same.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from .moments import in_float64, working_device

# A concept's erasure LoRA: (B [d_out, r], A [r, d]) by projection. It may lack projections.
Lora = Mapping[str, tuple[Tensor, Tensor]]


def init_pair(d_out: int, d: int, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A LoRA that changes nothing yet: B = 0 [d_out, rank] and A ~ N(0, 1/rank^2) [rank, d], float32.

    The published release starts so. A is drawn on the generator's device. Raises ValueError for a rank below 1.
    """
    if rank < 1:
        raise ValueError(f"the rank must be at least 1, not {rank}")
    down = torch.randn(rank, d, generator=generator, device=generator.device) / rank
    return torch.zeros(d_out, rank, device=generator.device), down


def merge(weight: Tensor, up: Tensor, down: Tensor, scale: float = 1.0) -> Tensor:
    """W' + scale B A (Eq. 4) in the weight's own dtype; the weight [d_out, d] itself is left as it is.

    Product and sum run in float32, or in float64 where an operand has it. Raises ValueError for other shapes.
    """
    _same_rank(up, down)
    if weight.shape != (up.shape[0], down.shape[1]):
        shape = (up.shape[0], down.shape[1])
        raise ValueError(f"the LoRA is for a weight of shape {shape}, not {tuple(weight.shape)}")
    wide = torch.float64 if torch.float64 in (weight.dtype, up.dtype, down.dtype) else torch.float32
    product = up.to(weight.device, wide) @ down.to(weight.device, wide)
    return (weight.to(wide) + scale * product).to(weight.dtype)


def per_sample(context: Tensor, ups: Tensor, downs: Tensor) -> Tensor:
    """What each sample's own LoRA adds to its keys or values: row n of sample b gets B_b A_b e, [B, N, d_out].

    context: token embeddings e [B, N, d].  ups: B_b [B, d_out, r].  downs: A_b [B, r, d].  Differentiable in all
    three. Runs in the LoRAs' dtype and returns the context's. Raises ValueError for shapes that do not fit.
    """
    _same_rank(ups, downs)
    batch, _, d = context.shape
    if not (len(ups) == len(downs) == batch and downs.shape[-1] == d):
        raise ValueError(
            f"a batch of {batch} samples with embeddings {d} wide does not fit LoRAs B {list(ups.shape)}, "
            f"A {list(downs.shape)}"
        )
    hidden = torch.bmm(context.to(downs.dtype), downs.mT)
    return torch.bmm(hidden, ups.mT).to(context.dtype)


def approximate(delta: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """The best LoRA of a change W* - W [d_out, d]: (B, A, residual) of its truncated singular value decomposition.

    residual: ||delta - B A|| / ||delta|| (Frobenius), 0 for a change of zeros. A rank above min(d_out, d) is
    lowered to it. Computed in float64; B [d_out, r] and A [r, d] are float32 on the delta's device, with the
    singular values shared evenly, and the residual is that of these. Raises ValueError for a rank below 1 or values
    that are not finite.
    """
    if rank < 1:
        raise ValueError(f"the rank must be at least 1, not {rank}")
    if not torch.isfinite(delta).all():
        raise ValueError("the change of a weight holds values that are not finite (NaN or infinity)")
    exact = in_float64(delta, working_device(delta.device))
    tall = exact if exact.shape[0] >= exact.shape[1] else exact.mT
    # Right singular vectors from the Gram matrix of the smaller side: several times faster than a full
    # decomposition, and the left ones follow by a product, so that its squared condition does not matter.
    _, vectors = torch.linalg.eigh(tall.mT @ tall)
    right = vectors.flip(1)[:, :rank]
    left = tall @ right
    norms = left.norm(dim=0).sqrt()
    left, right = left / norms.clamp_min(torch.finfo(torch.float64).tiny), right * norms
    up, down = (left, right.mT) if tall is exact else (right, left.mT)
    up, down = up.float().contiguous(), down.float().contiguous()
    norm = exact.norm().item()
    missed = (exact - up.double() @ down.double()).norm().item()
    return up.to(delta.device), down.to(delta.device), missed / norm if norm else 0.0


def _same_rank(up: Tensor, down: Tensor) -> None:
    if up.shape[-1] != down.shape[-2]:
        raise ValueError(f"B has rank {up.shape[-1]}, A {down.shape[-2]}: they are not of one LoRA")
