"""Refinement (Eq. 1, 2, 19): one transform of all projections, against the objective written out for each."""

from dataclasses import replace

import pytest
import torch

from mace.method.moments import ConceptMoments, pack, unpack
from mace.method.refine import RefineWeights, SingularSystem, refinement, solve_right, weight_delta
from tests import oracle

WIDTH = 24
# d_out of each layer differs, as in a U-Net; each has keys and values of its own.
LAYERS = [(rows, name) for rows in (8, 24, 40) for name in ("to_k", "to_v")]

WEIGHTS = {
    "mu": RefineWeights(mu=0.7),
    "prior": RefineWeights(lambda1=0.05),
    "prior and preserve": RefineWeights(lambda1=0.05, lambda3=3.0),
    "all": RefineWeights(lambda1=0.05, lambda3=3.0, mu=0.7),
    "preserve and mu": RefineWeights(lambda3=3.0, mu=0.1),
}


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def projection(rows, name):
    return normal(rows, WIDTH, seed=rows * 10 + (name == "to_v"))


def tokens(count, seed):
    """Tokens with a large common part, as a text encoder gives them."""
    return 3.0 * normal(1, WIDTH, seed=99) + normal(count, WIDTH, seed=seed)


def concept(seed, count=15):
    """(e_f, e_g) of one concept."""
    f = tokens(count, seed)
    return f, f + 0.5 * normal(count, WIDTH, seed=seed + 1000)


def moments(f, g):
    """ConceptMoments of pairs, without mace's own summation. S is not read by a refinement."""
    return ConceptMoments(g.T @ f, pack(f.T @ f), pack(f.T @ f), len(f), 1)


def gram(tokens):
    return tokens.T @ tokens


CONCEPTS = [concept(seed) for seed in (1, 2, 3)]
PRIOR = tokens(200, seed=50)
PRESERVE = tokens(10, seed=60)


def problem(weights, pairs=CONCEPTS):
    f, g = (torch.cat(side) for side in zip(*pairs, strict=True))
    return oracle.Problem(f, g, PRIOR, PRESERVE, weights.lambda1, weights.lambda3, weights.mu)


def solve(weights, pairs=CONCEPTS, strengths=None):
    found = [moments(f, g) for f, g in pairs]
    return refinement(found, weights, gram(PRIOR), gram(PRESERVE), strengths)


def refined(weight, delta):
    """W' = W T, in float64."""
    return weight @ (torch.eye(len(delta), dtype=torch.float64) + delta)


def close(found, expected, rtol=1e-8):
    torch.testing.assert_close(found, expected, rtol=rtol, atol=rtol * float(expected.abs().max()))


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS.keys())
def test_every_layer_is_at_the_minimum(weights):
    delta = solve(weights)
    for layer in LAYERS:
        weight = projection(*layer)
        found = refined(weight, delta)
        assert float((found - weight).norm() / weight.norm()) > 1e-2
        close(found, oracle.minimiser(weight, problem(weights)))
        close(found, oracle.per_layer(weight, problem(weights)))


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS.keys())
def test_gradient_of_the_objective_is_zero(weights):
    delta, weight = solve(weights), projection(24, "to_v")
    steep = oracle.gradient(weight, weight, problem(weights)).abs().max()
    flat = oracle.gradient(refined(weight, delta), weight, problem(weights)).abs().max()
    assert steep > 1
    assert flat < 1e-9 * steep


def test_without_a_prior_moment_its_weight_does_nothing():
    found = [moments(f, g) for f, g in CONCEPTS]
    weights = RefineWeights(lambda1=0.05, lambda3=3.0, mu=0.7)
    close(refinement(found, weights), solve(RefineWeights(mu=0.7)))
    close(refinement(found, weights, prior=gram(PRIOR)), solve(RefineWeights(lambda1=0.05, mu=0.7)))
    close(refinement(found, weights, preserve=gram(PRESERVE)), solve(RefineWeights(lambda3=3.0, mu=0.7)))


def test_full_rank_needs_no_weights():
    """45 pairs fix a transform of width 24 by themselves."""
    weights, weight = RefineWeights(), projection(8, "to_k")
    close(refined(weight, solve(weights)), oracle.minimiser(weight, problem(weights)))


def test_a_strong_prior_keeps_the_weights():
    changes = [solve(RefineWeights(lambda1=x, mu=0.1)).norm() for x in (0.0, 0.1, 10.0, 1e6)]
    assert all(more > less for more, less in zip(changes, changes[1:], strict=False))
    assert changes[-1] < 1e-5


def test_equal_prompts_change_nothing():
    pairs = [(f, f) for f, _ in CONCEPTS]
    assert float(solve(RefineWeights(lambda1=0.05, mu=0.7), pairs).abs().max()) < 1e-12


def test_order_of_concepts_does_not_matter():
    weights = WEIGHTS["all"]
    close(solve(weights, CONCEPTS[::-1], [0.2, 0.5, 1.0]), solve(weights, CONCEPTS, [1.0, 0.5, 0.2]))


def test_inputs_stay_as_they_are():
    found = [moments(f, g) for f, g in CONCEPTS]
    before = [(m.cross.clone(), m.paired.clone()) for m in found]
    prior, preserve = gram(PRIOR), gram(PRESERVE)
    first = refinement(found, WEIGHTS["all"], prior, preserve, [1.0, 0.5, 0.0])
    second = refinement(found, WEIGHTS["all"], prior, preserve, [1.0, 0.5, 0.0])
    assert torch.equal(first, second)
    assert torch.equal(prior, gram(PRIOR)) and torch.equal(preserve, gram(PRESERVE))
    for moment, (cross, paired) in zip(found, before, strict=True):
        assert torch.equal(moment.cross, cross) and torch.equal(moment.paired, paired)


# Strength: the target of a concept is scaled, its moments are not.


@pytest.mark.parametrize("weights", [WEIGHTS["mu"], WEIGHTS["all"]], ids=["mu", "all"])
@pytest.mark.parametrize("strengths", [[0.5, 0.5, 0.5], [1.0, 0.25, 0.01]])
def test_strength_scales_the_target(weights, strengths):
    """W' e_f is drawn to W e_f + s W (e_g - e_f)."""
    delta = solve(weights, strengths=strengths)
    scaled = [(f, oracle.between(f, g, s)) for (f, g), s in zip(CONCEPTS, strengths, strict=True)]
    for layer in LAYERS:
        weight = projection(*layer)
        close(refined(weight, delta), oracle.minimiser(weight, problem(weights, scaled)))
        close(refined(weight, delta), oracle.per_layer(weight, problem(weights, scaled)))


def test_strength_formula():
    """T(s) - I = sum s_i (A_i - G_i) (sum G_i + l1 P + l3 D + mu I)^-1, by an explicit inverse."""
    weights, strengths = WEIGHTS["all"], [1.0, 0.25, 0.6]
    system = weights.mu * torch.eye(WIDTH, dtype=torch.float64)
    system += weights.lambda1 * gram(PRIOR) + weights.lambda3 * gram(PRESERVE)
    numerator = torch.zeros(WIDTH, WIDTH, dtype=torch.float64)
    for (f, g), strength in zip(CONCEPTS, strengths, strict=True):
        system += gram(f)
        numerator += strength * (g - f).T @ f
    close(solve(weights, strengths=strengths), numerator @ torch.linalg.inv(system))


def test_strength_is_linear_in_the_target():
    """With all concepts in the sums, T - I is linear in the strengths."""
    weights = WEIGHTS["all"]
    one, other = [1.0, 0.2, 0.4], [0.1, 0.8, 0.6]
    middle = [0.3 * a + 0.7 * b for a, b in zip(one, other, strict=True)]
    expected = 0.3 * solve(weights, strengths=one) + 0.7 * solve(weights, strengths=other)
    close(solve(weights, strengths=middle), expected)
    close(solve(weights, strengths=[0.25] * 3), 0.25 * solve(weights))


def test_a_concept_at_zero_leaves_the_sums():
    weights = WEIGHTS["all"]
    close(solve(weights, strengths=[1.0, 0.0, 0.5]), solve(weights, CONCEPTS[::2], [1.0, 0.5]))
    step = solve(weights, strengths=[1.0, 1e-9, 0.5]) - solve(weights, strengths=[1.0, 0.0, 0.5])
    assert float(step.abs().max()) > 1e-4  # just above 0 its moments are in the sums


def test_all_strengths_one_is_no_strengths():
    assert torch.equal(solve(WEIGHTS["all"], strengths=[1.0] * 3), solve(WEIGHTS["all"]))


@pytest.mark.parametrize("strengths", [[0.0, 0.0, 0.0], [1.0, 1.0], [1.0, 1.0, 1.5], [-0.1, 1.0, 1.0]])
def test_bad_strengths(strengths):
    with pytest.raises(ValueError, match="strength"):
        solve(WEIGHTS["all"], strengths=strengths)


def test_strength_that_is_no_number():
    with pytest.raises(ValueError, match="strength"):
        solve(WEIGHTS["all"], strengths=[1.0, float("nan"), 1.0])


def test_no_concepts():
    with pytest.raises(ValueError, match="nothing to refine"):
        refinement([], WEIGHTS["all"])


@pytest.mark.parametrize("name", ["lambda1", "lambda3", "mu"])
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_bad_weights(name, value):
    with pytest.raises(ValueError, match="lambda1, lambda3 and mu"):
        solve(replace(WEIGHTS["all"], **{name: value}))


# Systems that do not fix the solution.


@pytest.mark.parametrize("count", [3, WIDTH - 1])
def test_singular_system_names_the_cure(count):
    pairs = [concept(7, count)]
    with pytest.raises(SingularSystem, match="(?s)mu.*prior"):
        solve(RefineWeights(), pairs)
    solve(RefineWeights(mu=1e-3), pairs)
    solve(RefineWeights(lambda1=1e-3), pairs)


@pytest.mark.parametrize("mu", [1e-2, 1e-4, 1e-6])
def test_rank_deficient_with_a_small_mu(mu):
    """5 pairs of width 24: mu alone carries 19 directions, and the result is still the minimiser."""
    pairs, weights, weight = [concept(8, 5)], RefineWeights(mu=mu), projection(40, "to_k")
    found = refined(weight, solve(weights, pairs))
    condition = float(gram(pairs[0][0]).diagonal().sum()) / mu
    assert condition * torch.finfo(torch.float64).eps < 1e-6
    close(found, oracle.minimiser(weight, problem(weights, pairs)), rtol=1e-6)
    outside = torch.linalg.svd(pairs[0][0]).Vh[5:].T  # directions that no token has
    close(found @ outside, weight @ outside, rtol=1e-6)


def test_moments_that_are_not_finite():
    found = [moments(f, g) for f, g in CONCEPTS]
    for name in ("cross", "paired"):
        damaged = getattr(found[1], name).clone()
        damaged.view(-1)[3] = float("nan")
        with pytest.raises(SingularSystem, match="not finite"):
            refinement([found[0], replace(found[1], **{name: damaged})], WEIGHTS["mu"])
    with pytest.raises(SingularSystem, match="not finite"):
        refinement(found, WEIGHTS["all"], prior=torch.full((WIDTH, WIDTH), float("inf"), dtype=torch.float64))


def test_solve_right():
    numerator, system = normal(5, WIDTH, seed=1), gram(PRIOR)
    close(solve_right(numerator, system) @ system, numerator)
    with pytest.raises(SingularSystem):
        solve_right(numerator, -system)
    with pytest.raises(SingularSystem):
        solve_right(numerator, torch.zeros_like(system))


# Application to a weight.


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_weight_delta(dtype):
    """A float32 product, whatever the dtype of the weight: within float32's rounding of the float64 product."""
    delta, weight = solve(WEIGHTS["all"]), projection(40, "to_v").to(dtype)
    before = weight.clone()
    found = weight_delta(weight, delta)
    assert found.dtype == torch.float32 and found.device == weight.device
    assert torch.equal(weight, before)
    expected = weight.double() @ delta
    error = (found.double() - expected).norm() / expected.norm()
    assert float(error) < 1e-6


def test_a_small_delta_is_not_drowned():
    """T - I is kept, so a refinement far below the rounding of one survives in float32."""
    delta = 1e-6 * solve(WEIGHTS["all"])
    weight = projection(24, "to_k").float()
    expected = weight.double() @ delta
    assert float((weight_delta(weight, delta) - expected).norm() / expected.norm()) < 1e-6


def test_moments_of_the_test_are_those_of_mace():
    f, g = CONCEPTS[0]
    found = moments(f, g)
    close(found.cross, oracle.outer_sum(g, f, WIDTH))
    close(unpack(found.paired), oracle.outer_sum(f, f, WIDTH))
