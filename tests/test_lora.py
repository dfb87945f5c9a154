"""Erasure LoRAs: start, merge, the per-sample product, and the best LoRA of a change."""

import pytest
import torch

from mace.method.lora import approximate, init_pair, merge, per_sample


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


@pytest.mark.parametrize("rank", [1, 4])
def test_a_new_lora_changes_nothing_and_has_the_releases_spread(rank):
    up, down = init_pair(320, 20_000, rank, seeded())
    assert up.shape == (320, rank) and down.shape == (rank, 20_000)
    assert not up.any()
    assert down.mean().item() == pytest.approx(0, abs=0.03 / rank)
    assert down.std().item() == pytest.approx(1 / rank, rel=0.02)
    weight = torch.randn(320, 20_000, generator=seeded(1))
    assert torch.equal(merge(weight, up, down), weight)
    assert torch.equal(init_pair(320, 20_000, rank, seeded())[1], down)
    assert not torch.equal(init_pair(320, 20_000, rank, seeded(1))[1], down)


def test_merging_writes_out_eq_4_and_leaves_the_weight():
    weight, up, down = random(5, 7), random(5, 2, seed=1), random(2, 7, seed=2)
    before = weight.clone()
    merged = merge(weight, up, down, 0.5)
    for i in range(5):
        for j in range(7):
            expected = before[i, j] + 0.5 * sum(up[i, k] * down[k, j] for k in range(2))
            assert merged[i, j].item() == pytest.approx(expected.item(), rel=1e-14)
    assert torch.equal(weight, before) and merged.data_ptr() != weight.data_ptr()
    assert torch.equal(merge(weight, up, down), merge(weight, up, down, 1.0))


def test_a_half_precision_weight_keeps_its_dtype_and_is_rounded_once():
    weight, up, down = (t.float() for t in (random(64, 96), random(64, 4, seed=1) * 1e-2, random(4, 96, seed=2) * 1e-2))
    merged = merge(weight.half(), up, down)
    assert merged.dtype == torch.float16
    exact = weight.half().double() + up.double() @ down.double()
    # Once rounded is at most half a unit in the last place off; a product in half precision is not.
    assert ((merged.double() - exact).abs() <= exact.abs() * 2**-11 + 1e-6).all()


def samples(batch=3, tokens=4, d=6, d_out=5, rank=2):
    return random(batch, tokens, d), random(batch, d_out, rank, seed=1), random(batch, rank, d, seed=2)


def test_per_sample_is_every_samples_weight_merged_alone():
    context, ups, downs = samples()
    weight = random(5, 6, seed=3)
    together = context @ weight.T + per_sample(context, ups, downs)
    for b in range(3):
        alone = context[b] @ merge(weight, ups[b], downs[b]).T
        torch.testing.assert_close(together[b], alone, rtol=1e-13, atol=1e-13)


def test_per_sample_gradients_against_finite_differences():
    inputs = [t.requires_grad_(True) for t in samples()]
    assert torch.autograd.gradcheck(per_sample, inputs)


def test_per_sample_gradients_are_those_of_each_concept_alone():
    context, ups, downs = samples()
    weight, probe = random(5, 6, seed=3), random(3, 4, 5, seed=4)

    def loss(keys, at):
        return ((keys - probe[at]).softmax(dim=-1) * probe[at]).square().sum()

    ups, downs = ups.requires_grad_(True), downs.requires_grad_(True)
    keys = context @ weight.T + per_sample(context, ups, downs)
    sum(loss(keys[b], b) for b in range(3)).backward()
    for b in range(3):
        up, down = ups[b].detach().clone().requires_grad_(True), downs[b].detach().clone().requires_grad_(True)
        loss(context[b] @ (weight + up @ down).T, b).backward()
        torch.testing.assert_close(ups.grad[b], up.grad, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(downs.grad[b], down.grad, rtol=1e-12, atol=1e-14)
        assert up.grad.abs().max() > 1e-3


def test_per_sample_returns_the_contexts_dtype_and_trains_in_the_loras():
    context, ups, downs = samples()
    ups, downs = ups.float().requires_grad_(True), downs.float().requires_grad_(True)
    added = per_sample(context.half(), ups, downs)
    assert added.dtype == torch.float16
    torch.testing.assert_close(added.double(), per_sample(context, ups.double(), downs.double()), rtol=0.01, atol=0.02)
    added.float().sum().backward()
    assert ups.grad.dtype == downs.grad.dtype == torch.float32 and ups.grad.any()


@pytest.mark.parametrize("shape", [(12, 8), (8, 12), (9, 9)])
@pytest.mark.parametrize("rank", [1, 3])
def test_approximate_is_the_best_of_its_rank(shape, rank):
    delta = random(*shape)
    up, down, residual = approximate(delta, rank)
    assert up.shape == (shape[0], rank) and down.shape == (rank, shape[1])
    assert up.is_contiguous() and down.is_contiguous()
    singular = torch.linalg.svdvals(delta)
    best = (singular[rank:].square().sum() / singular.square().sum()).sqrt().item()  # Eckart and Young
    assert residual == pytest.approx(best, rel=1e-6)
    real = ((delta - up.double() @ down.double()).norm() / delta.norm()).item()
    assert residual == pytest.approx(real, rel=1e-9)
    # Singular values are shared evenly between both.
    torch.testing.assert_close(up.double().norm(dim=0), singular[:rank].sqrt(), rtol=1e-5, atol=0)
    torch.testing.assert_close(down.double().norm(dim=1), singular[:rank].sqrt(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("shape", [(40, 24), (24, 40)])
def test_a_change_of_low_rank_is_kept_to_rounding(shape):
    delta = random(shape[0], 2) @ random(2, shape[1], seed=1)
    up, down, residual = approximate(delta, 5)
    assert residual < 1e-6
    assert torch.isfinite(up).all() and torch.isfinite(down).all()
    torch.testing.assert_close(merge(torch.zeros(shape), up, down), delta.float(), rtol=1e-4, atol=1e-5)


def test_a_rank_above_the_matrix_is_lowered_and_zero_stays_zero():
    up, down, residual = approximate(random(4, 6), 64)
    assert up.shape == (4, 4) and down.shape == (4, 6) and residual < 1e-6
    up, down, residual = approximate(torch.zeros(4, 6), 2)
    assert not up.any() and not down.any() and residual == 0.0


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="rank must be at least 1"):
        init_pair(4, 4, 0, seeded())
    with pytest.raises(ValueError, match="rank must be at least 1"):
        approximate(torch.eye(3), 0)
    with pytest.raises(ValueError, match="not finite"):
        approximate(torch.full((3, 3), torch.nan), 1)
    with pytest.raises(ValueError, match="rank 2, A 3"):
        merge(torch.zeros(5, 7), torch.zeros(5, 2), torch.zeros(3, 7))
    # A weight of one row would broadcast.
    with pytest.raises(ValueError, match=r"\(5, 7\), not \(1, 7\)"):
        merge(torch.zeros(1, 7), torch.zeros(5, 2), torch.zeros(2, 7))
    context, ups, downs = samples()
    with pytest.raises(ValueError, match="batch of 3"):
        per_sample(context, ups[:1], downs[:1])
    with pytest.raises(ValueError, match="6 wide"):
        per_sample(context, ups, downs[:, :, :5])
