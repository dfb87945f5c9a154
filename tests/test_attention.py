"""Eq. 3's loss against loops over tokens, heads and pixels, and its gradient against finite differences."""

import math

import pytest
import torch

from mace.method.loss import LOSSES, NORMS, SQUARED, grid_mask, masked_loss, spread_over, token_attention

B, HEADS, PIXELS, TOKENS, C = 2, 3, 6, 5, 4


def tensors(seed=0):
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(B, PIXELS, HEADS * C, generator=generator, dtype=torch.float64)
    k = torch.randn(B, TOKENS, HEADS * C, generator=generator, dtype=torch.float64)
    tokens = torch.tensor([[0, 1, 1, 0, 0], [0, 0, 0, 1, 0]], dtype=torch.float64)
    mask = torch.tensor([[1, 1, 0, 0, 1, 0], [0, 1, 1, 1, 0, 0]], dtype=torch.float64)
    return q, k, tokens, mask


def by_loops(q, k, tokens, mask, form):
    """Eq. 3 as it is written, for one layer."""
    losses = []
    for b in range(B):
        loss = 0.0
        for head in range(HEADS):
            part = slice(head * C, (head + 1) * C)
            columns = []
            for pixel in range(PIXELS):
                logits = [float(q[b, pixel, part] @ k[b, token, part]) / math.sqrt(C) for token in range(TOKENS)]
                most = max(logits)
                weights = [math.exp(x - most) for x in logits]
                columns.append([w / sum(weights) for w in weights])
            for token in range(TOKENS):
                if tokens[b, token]:
                    square = sum((columns[p][token] * float(mask[b, p])) ** 2 for p in range(PIXELS))
                    loss += square if form == SQUARED else math.sqrt(square)
        losses.append(loss)
    return torch.tensor(losses, dtype=torch.float64)


@pytest.mark.parametrize("form", LOSSES)
def test_loss_is_the_written_out_one(form):
    q, k, tokens, mask = tensors()
    found = masked_loss(token_attention(q, k, HEADS), tokens, mask, form)
    torch.testing.assert_close(found, by_loops(q, k, tokens, mask, form), rtol=1e-12, atol=0)


@pytest.mark.parametrize("form", LOSSES)
def test_gradient_is_that_of_finite_differences(form):
    q, k, tokens, mask = tensors(1)
    k.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda k: masked_loss(token_attention(q, k, HEADS), tokens, mask, form), (k,))


def test_no_token_gives_no_loss_and_a_finite_gradient():
    q, k, tokens, mask = tensors()
    k.requires_grad_(True)
    masked_loss(token_attention(q, k, HEADS), torch.zeros_like(tokens), mask, NORMS).sum().backward()
    assert torch.equal(k.grad, torch.zeros_like(k))


def test_half_precision_is_summed_in_float32():
    q, k, _, _ = tensors()
    attention = token_attention(q.half(), k.half(), HEADS)
    assert attention.dtype == torch.float32
    torch.testing.assert_close(attention.sum(-1), torch.ones(B, HEADS, PIXELS), rtol=1e-6, atol=1e-6)


def test_unknown_form():
    q, k, tokens, mask = tensors()
    with pytest.raises(ValueError, match="unknown loss"):
        masked_loss(token_attention(q, k, HEADS), tokens, mask, "mean")


def test_mask_is_averaged_over_cells_and_cut_at_one_half():
    mask = torch.zeros(1, 4, 4)
    mask[0, :2, :2] = 1  # a whole cell
    mask[0, 0, 2:] = 1  # half a cell
    mask[0, 3, 3] = 1  # a quarter
    assert grid_mask(mask, 2, 2).tolist() == [[1, 1, 0, 0]]
    assert grid_mask(mask, 4, 4).tolist() == mask.flatten(1).tolist()


def test_a_thin_object_keeps_the_cells_it_fills_most():
    mask = torch.zeros(2, 8, 8)
    mask[0, 0, :3] = 1
    mask[1] = 1
    assert grid_mask(mask, 2, 2).tolist() == [[1, 0, 0, 0], [1, 1, 1, 1]]


def test_an_empty_mask_is_an_error():
    mask = torch.ones(2, 4, 4)
    mask[1] = 0
    with pytest.raises(ValueError, match="mask is empty"):
        grid_mask(mask, 2, 2)


def test_token_positions():
    assert spread_over((5, 6), 8, 10, False) == (5, 6)
    assert spread_over((5, 6), 8, 10, True) == (5, 6, 8, 9)
