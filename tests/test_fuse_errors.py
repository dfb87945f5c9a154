"""Fusion's errors: each holds for both fusions."""

from dataclasses import replace

import pytest
import torch

from mace.method.fuse import FuseWeights, fuse, naive
from mace.method.moments import pack
from mace.method.refine import SingularSystem, refinement
from tests.test_fuse import ALL, LORAS, MOMENTS, REFINE, TOKENS, solve
from tests.test_refine import WIDTH, gram


def either(which, loras=LORAS, strengths=None):
    if which is fuse:
        return solve(strengths=strengths, loras=loras)
    return naive(loras, refinement(MOMENTS, REFINE), strengths)


BOTH = pytest.mark.parametrize("which", [fuse, naive])


@BOTH
@pytest.mark.parametrize("strengths", [[1.0], [1.0, 1.0, 1.0, 1.5], [-0.1, 1.0, 1.0, 1.0], [1.0, float("nan"), 1, 1]])
def test_bad_strengths(which, strengths):
    with pytest.raises(ValueError, match="strength"):
        either(which, strengths=strengths)


@BOTH
def test_all_strengths_zero(which):
    with pytest.raises(ValueError, match="nothing to fuse"):
        either(which, strengths=[0.0] * 4)


def test_no_concepts():
    with pytest.raises(ValueError, match="nothing to fuse"):
        solve(moments=[], loras=[])


def test_another_count_of_loras():
    with pytest.raises(ValueError, match="3 LoRAs for 4 concepts"):
        solve(loras=LORAS[:3])


def damaged(change):
    """LORAS, with one pair of the second changed."""
    key = "block.8.to_v"
    up, down = (t.clone() for t in LORAS[1][key])
    return [LORAS[0], {**LORAS[1], key: change(up, down)}, *LORAS[2:]]


@BOTH
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("side", [0, 1], ids=["B", "A"])
def test_a_lora_that_is_not_finite(which, side, value):
    def change(*pair):
        pair[side].view(-1)[3] = value
        return pair

    with pytest.raises(ValueError, match=r"LoRA 2, block\.8\.to_v.*not finite"):
        either(which, damaged(change))
    either(which, damaged(change), strengths=[1.0, 0.0, 1.0, 1.0])  # what has left the sums harms nothing


@BOTH
def test_a_lora_of_another_model(which):
    with pytest.raises(ValueError, match=r"LoRA 2, block\.8\.to_v.*25 wide.*24"):
        either(which, damaged(lambda up, down: (up, torch.ones(3, WIDTH + 1))))
    with pytest.raises(ValueError, match=r"LoRA 2, block\.8\.to_v.*no product"):
        either(which, damaged(lambda up, down: (up, down[:2])))
    with pytest.raises(ValueError, match=r"LoRA 2, block\.8\.to_v.*no product"):
        either(which, damaged(lambda up, down: (up, down[:, 0])))
    with pytest.raises(ValueError, match=r"LoRA 2, block\.8\.to_v.*no product"):
        either(which, damaged(lambda up, down: (up[:, 0], down)))
    with pytest.raises(ValueError, match=r"block\.8\.to_v.*8 and 9 rows"):
        either(which, damaged(lambda up, down: (torch.ones(9, 3), down)))


def test_a_weight_of_another_shape():
    fusion = solve()
    with pytest.raises(ValueError, match=r"block\.1\.to_k has 8 rows, its LoRAs 1"):
        fusion.delta("block.1.to_k", torch.ones(8, WIDTH))
    with pytest.raises(ValueError, match="25 wide"):
        fusion.delta("elsewhere", torch.ones(8, WIDTH + 1))


@pytest.mark.parametrize("name", ["lambda2", "lambda3", "mu"])
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_bad_weights(name, value):
    with pytest.raises(ValueError, match="lambda2, lambda3 and mu"):
        replace(ALL, **{name: value})


def test_bad_pull():
    with pytest.raises(ValueError, match='"refined", "base" or "all refined"'):
        FuseWeights(pull="W")


def test_singular_system_names_the_cure():
    few = [replace(MOMENTS[0], total=pack(gram(TOKENS[0][:5])))]
    with pytest.raises(SingularSystem, match="(?s)mu.*lambda2"):
        solve(FuseWeights(), moments=few, loras=LORAS[:1])
    solve(FuseWeights(mu=1e-3), moments=few, loras=LORAS[:1])
    broken = [replace(MOMENTS[0], total=torch.full_like(MOMENTS[0].total, float("nan")))]
    with pytest.raises(SingularSystem, match="not finite"):
        solve(moments=broken, loras=LORAS[:1])
