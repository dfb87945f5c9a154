"""The attention a concept's tokens get, and the loss that trains it away (Eq. 3).

Loss of one sample: sum over the tokens i in S and the layers l of ||A^i_{t,l} (.) M||_F^2, where A are the
cross-attention probabilities of the noise-predicting forward at timestep t, summed over heads, and M is the
object's mask on the layer's grid.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# Eq. 3 as printed, and as the published release computes it.
SQUARED, NORMS = "squared norm (paper)", "sum of norms (release)"
LOSSES = (SQUARED, NORMS)


def grid_mask(masks: Tensor, height: int, width: int) -> Tensor:
    """Masks [B, H, W] in 0..1 on a layer's grid, [B, height * width]: averaged over each cell and cut at one half.

    A thing too thin to fill half of any cell keeps the cells it fills most, so that no layer goes without a
    mask. Raises ValueError for a mask without any positive value.
    """
    if not (masks.flatten(1) > 0).any(dim=1).all():
        raise ValueError("a mask is empty; use the whole image in its place")
    cells = F.adaptive_avg_pool2d(masks[:, None].float(), (height, width)).flatten(1)
    cut = cells.amax(dim=1, keepdim=True).clamp_max(0.5)
    return (cells >= cut).to(masks.dtype)


def token_attention(queries: Tensor, keys: Tensor, heads: int) -> Tensor:
    """Attention probabilities [B, heads, pixels, tokens] of q [B, pixels, heads * c] and k [B, tokens, heads * c].

    Scores and softmax run in float32 at least, whatever the model's dtype: in half precision q k^T can overflow before
    it is scaled, and what a LoRA at the paper's rate adds to a key is less than bf16 can tell.
    """
    q, k = (_by_head(x, heads) for x in (queries, keys))
    return ((q @ k.mT) * q.shape[-1] ** -0.5).softmax(dim=-1)


def weighted_values(attention: Tensor, values: Tensor) -> Tensor:
    """What attention gives, [B, pixels, heads * c], of probabilities [B, heads, pixels, tokens] and v [B, tokens,
    heads * c]; float32 at least."""
    return (attention @ _by_head(values, attention.shape[1])).transpose(1, 2).flatten(2)


def _by_head(rows: Tensor, heads: int) -> Tensor:
    """[B, n, heads * c] as [B, heads, n, c], in float32 at least."""
    wide = rows.to(torch.promote_types(rows.dtype, torch.float32))
    return wide.unflatten(-1, (heads, -1)).transpose(1, 2)


def masked_loss(attention: Tensor, tokens: Tensor, mask: Tensor, form: str = SQUARED) -> Tensor:
    """Eq. 3 of one layer for every sample, [B].

    attention: probabilities [B, heads, pixels, tokens].  tokens: 1 for the concept's tokens, else 0,
    [B, tokens].  mask: [B, pixels].  form: one of LOSSES; the second sums ||A^i (.) M||_F over tokens and
    heads. Raises ValueError for another form.
    """
    if form not in LOSSES:
        raise ValueError(f"unknown loss {form!r}: use one of {', '.join(LOSSES)}")
    squares = ((attention * mask[:, None, :, None]) ** 2).sum(dim=2) * tokens[:, None, :]
    if form == SQUARED:
        return squares.sum(dim=(1, 2))
    # The gradient of a root at 0 is infinite; a token outside the concept contributes exactly 0 here.
    chosen = squares > 0
    return torch.where(chosen, squares, 1.0).sqrt().mul(chosen).sum(dim=(1, 2))


def spread_over(positions: tuple[int, ...], end: int, window: int, with_end: bool) -> tuple[int, ...]:
    """The token positions S of Eq. 3: the phrase's own, and with `with_end` end-of-text and padding too (release).

    end: the position of end-of-text.  window: positions of the encoder.
    """
    return tuple(positions) + (tuple(range(end, window)) if with_end else ())
