"""Very wide texts: sums kept as rows, and refinement in their span, against the sums and the solve of [d, d]."""

import pytest
import torch

from mace.method.moments import concept_moments
from mace.method.refine import RefineWeights, SingularSystem, refinement, weight_delta
from mace.method.span import row_moments, span_refinement
from mace.method.tokens import Pairing

CPU = torch.device("cpu")
D = 60
WEIGHTS = RefineWeights(mu=0.3)


def batches(seed):
    """Three prompts of nine rows, the first rows of each the same, some of the others not paired."""
    drawn = torch.Generator().manual_seed(seed)
    targets, mappings = torch.randn(2, 3, 9, D, generator=drawn)
    targets[:, :3] = mappings[:, :3] = targets[0, :3]
    pairings = [Pairing((0, 1, 2, 4, 5, 6, 7), (0, 1, 2, 5, 6, 7, 8), (3,))] * 2
    pairings += [Pairing((0, 1, 2, 4), (0, 1, 2, 3), (3,))]
    return [(targets[:2], mappings[:2], pairings[:2]), (targets[2:], mappings[2:], pairings[2:])]


@pytest.fixture
def both():
    """The same two concepts by their sums and by their rows."""
    return [concept_moments(batches(seed), D, CPU) for seed in (0, 1)], [row_moments(batches(seed)) for seed in (0, 1)]


def test_rows_give_the_sums(both):
    for dense, rows in zip(*both, strict=True):
        for name in ("cross", "paired", "total"):
            torch.testing.assert_close(getattr(rows, name), getattr(dense, name), rtol=1e-5, atol=1e-5)
        assert (rows.pairs, rows.prompts, rows.width) == (dense.pairs, dense.prompts, D)
        assert rows.size == pytest.approx(dense.size, rel=1e-6)
        # Of the three rows that stand in all three prompts one each is kept.
        assert len(rows.f) == rows.pairs - 6


@pytest.mark.parametrize("strengths", [None, (1.0, 0.4), (0.0, 1.0)])
def test_the_span_has_the_solution(both, strengths):
    dense, rows = both
    wanted = refinement(dense, WEIGHTS, strengths=strengths)
    found = span_refinement(rows, WEIGHTS, strengths, CPU)
    assert found.left.shape[1] == found.right.shape[0] < D
    torch.testing.assert_close((found.left @ found.right).double(), wanted, rtol=1e-4, atol=1e-5)
    assert float(found.norm()) == pytest.approx(float(wanted.norm()), rel=1e-5)
    weight = torch.randn(11, D)
    torch.testing.assert_close(weight_delta(weight, found), weight_delta(weight, wanted), rtol=1e-4, atol=1e-4)


def test_what_has_no_solution(both):
    _, rows = both
    doubled = [rows[0], rows[0]]
    with pytest.raises(SingularSystem, match="raise mu"):
        span_refinement(doubled, RefineWeights(), None, CPU)
    with pytest.raises(ValueError, match="nothing to refine"):
        span_refinement(rows, WEIGHTS, (0.0, 0.0), CPU)


def test_values_that_are_not_finite():
    broken = batches(0)
    broken[0][0][0, 5, 0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        row_moments(broken)
