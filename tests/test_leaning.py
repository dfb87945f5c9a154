"""Gentle to strong: all weights that hold what a model knows, by one number."""

import pytest
import torch

from mace.method.fuse import FuseWeights, fuse
from mace.method.refine import READING, RefineWeights, refinement
from mace.presets.leaning import holding, leaning
from tests.test_fuse import ALL, KEYS, LORAS, MOMENTS, PAIRS, REFINE, weight_of
from tests.test_refine import PRESERVE, PRIOR, gram

LEANS = torch.linspace(-1, 1, 9).tolist()


def test_the_middle_is_the_preset_to_the_bit():
    weights = RefineWeights(1 / 3, 0.1, 7e-5, READING)
    assert leaning(weights, 0.0) == weights and leaning(ALL, 0.0) == ALL
    assert leaning(FuseWeights(0.3, 0.7, 1e-5, "base"), -0.0) == FuseWeights(0.3, 0.7, 1e-5, "base")


def test_the_ends_are_two_powers_of_ten_away():
    assert holding(-1.0) == 100 and holding(1.0) == 0.01
    gentle = leaning(RefineWeights(1e-4, 0.0, 10.0, READING), -1.0)
    assert (gentle.lambda1, gentle.lambda3, gentle.mu, gentle.metric) == (pytest.approx(1e-2), 0.0, 1000.0, READING)
    strong = leaning(FuseWeights(1.0, 2.0, 3.0, "base"), 1.0)
    assert (strong.lambda2, strong.lambda3, strong.mu) == pytest.approx((0.01, 0.02, 0.03)) and strong.pull == "base"
    for wrong in (-1.01, 2.0, float("nan")):
        with pytest.raises(ValueError, match="from -1 to 1"):
            holding(wrong)


def test_what_is_erased_grows_and_what_is_kept_falls():
    """The two sides of Eq. 19's objective, each written out as a sum: along the slider one falls, the other grows."""
    erased, kept = [], []
    for lean in LEANS:
        change = refinement(MOMENTS, leaning(REFINE, lean), gram(PRIOR), gram(PRESERVE))
        erased.append(float(sum((f + f @ change.T - g).square().sum() for f, g in PAIRS)))
        held = (
            REFINE.lambda1 * gram(PRIOR)
            + REFINE.lambda3 * gram(PRESERVE)
            + REFINE.mu * torch.eye(len(change), dtype=change.dtype)
        )
        kept.append(float((change @ held @ change.T).trace()))
    assert erased == sorted(erased, reverse=True) and erased[0] > erased[-1]
    assert kept == sorted(kept) and kept[0] < kept[-1]


def test_the_fused_change_grows():
    sizes = []
    for lean in LEANS:
        fusion = fuse(MOMENTS, LORAS, leaning(REFINE, lean), leaning(ALL, lean), gram(PRIOR), gram(PRESERVE))
        changes = (fusion.delta(key, weight_of(key), True) for key in KEYS)
        sizes.append(sum(float(change.double().square().sum()) for change in changes) ** 0.5)
    assert sizes == sorted(sizes) and sizes[-1] > 2 * sizes[0]
