"""Fusion (Eq. 6, 7): one solve of all projections and LoRAs, against the objective written out for each projection."""

from functools import cache

import pytest
import torch

from mace.method.fuse import ALL_TO_REFINED, TO_BASE, FuseWeights, fuse, naive
from mace.method.moments import ConceptMoments, pack
from mace.method.refine import RefineWeights, refinement
from tests import oracle, oracle_fuse
from tests.test_refine import PRESERVE, PRIOR, WIDTH, close, concept, gram, normal, tokens

# d_out of each projection; each concept's rank differs, one LoRA has keys only, one values only.
SHAPES = {f"block.{rows}.{name}": rows for rows in (1, 8, 24, 40) for name in ("to_k", "to_v")}
KEYS = [key for key in SHAPES if key.endswith("to_k")]
VALUES = [key for key in SHAPES if key.endswith("to_v")]

REFINE = RefineWeights(lambda1=0.05, lambda3=3.0, mu=0.7)
WEIGHTS = {
    "mu": FuseWeights(mu=0.4),
    "mu to base": FuseWeights(mu=0.4, pull=TO_BASE),
    "prior": FuseWeights(lambda2=0.03),
    "preserve and mu": FuseWeights(lambda3=2.0, mu=0.4),
    "all": FuseWeights(lambda2=0.03, lambda3=2.0, mu=0.4),
    "all, mu to base": FuseWeights(lambda2=0.03, lambda3=2.0, mu=0.4, pull=TO_BASE),
    "all to refined": FuseWeights(lambda2=0.03, lambda3=2.0, mu=0.4, pull=ALL_TO_REFINED),
    "prior to refined": FuseWeights(lambda2=0.03, pull=ALL_TO_REFINED),
}
ALL = WEIGHTS["all"]


def lora(seed, rank, keys=SHAPES):
    return {
        key: (
            normal(SHAPES[key], rank, seed=seed * 100 + i).float(),
            0.5 * normal(rank, WIDTH, seed=seed * 100 + 50 + i).float(),
        )
        for i, key in enumerate(keys)
    }


PAIRS = [concept(seed) for seed in (1, 2, 3, 4)]
# All tokens of all prompts of each concept: those of its pairs, and others.
TOKENS = [torch.cat([f, tokens(9, seed=70 + i)]) for i, (f, _) in enumerate(PAIRS)]
MOMENTS = [
    ConceptMoments(g.T @ f, pack(gram(f)), pack(gram(every)), len(f), 1)
    for (f, g), every in zip(PAIRS, TOKENS, strict=True)
]
LORAS = [lora(1, 1), lora(2, 3), lora(3, 2, KEYS), lora(4, 1, VALUES)]
STRENGTHS = [[1.0] * 4, [0.5] * 4, [1.0, 0.25, 0.01, 0.6], [0.0, 1.0, 0.3, 0.0]]


def weight_of(key):
    return normal(SHAPES[key], WIDTH, seed=500 + list(SHAPES).index(key))


def solve(weights=ALL, strengths=None, moments=MOMENTS, loras=LORAS, refine=REFINE):
    return fuse(moments, loras, refine, weights, gram(PRIOR), gram(PRESERVE), strengths)


def exact(fusion, key):
    """W* - W in float64."""
    change = weight_of(key) @ fusion.shared
    if key in fusion.stacks:
        up, rows = fusion.stacks[key]
        change = change + up.double() @ rows
    return change


def same(found, expected):
    for key in SHAPES:
        close(exact(found, key), exact(expected, key))


@cache
def refined(key, strengths):
    """W' by the oracle of the refinement. strengths: a tuple."""
    taken = [(f, oracle.between(f, g, s)) for (f, g), s in zip(PAIRS, strengths, strict=True) if s > 0]
    f, g = (torch.cat(side) for side in zip(*taken, strict=True))
    problem = oracle.Problem(f, g, PRIOR, PRESERVE, REFINE.lambda1, REFINE.lambda3, REFINE.mu)
    return oracle.minimiser(weight_of(key), problem)


def problem(key, weights, strengths):
    base, after = weight_of(key), refined(key, tuple(strengths))
    parts = []
    for every, own, strength in zip(TOKENS, LORAS, strengths, strict=True):
        if strength > 0:
            change = oracle_fuse.product(*own[key]) if key in own else torch.zeros_like(base)
            parts.append(oracle_fuse.Part(every, strength * change))
    centre = base if weights.pull == TO_BASE else after
    held = after if weights.pull == ALL_TO_REFINED else base
    return oracle_fuse.Problem(
        base, after, centre, parts, PRIOR, PRESERVE, weights.lambda2, weights.lambda3, weights.mu, held
    )


@pytest.mark.parametrize("strengths", STRENGTHS, ids=str)
@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS.keys())
def test_every_projection_is_at_the_minimum(weights, strengths):
    fusion = solve(weights, strengths)
    for key in SHAPES:
        written, weight = problem(key, weights, strengths), weight_of(key)
        found = weight + exact(fusion, key)
        assert float((found - weight).norm() / weight.norm()) > 1e-2
        assert float((found - written.refined).norm() / weight.norm()) > 1e-3
        close(found, oracle_fuse.minimiser(written))
        close(found, oracle_fuse.per_layer(written))


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS.keys())
def test_gradient_of_the_objective_is_zero(weights):
    key, strengths = "block.24.to_v", [1.0, 0.25, 0.01, 0.6]
    fusion, written = solve(weights, strengths), problem(key, weights, strengths)
    steep = oracle_fuse.gradient(written.refined, written).abs().max()
    flat = oracle_fuse.gradient(weight_of(key) + exact(fusion, key), written).abs().max()
    assert steep > 1
    assert flat < 1e-9 * steep


def test_what_is_kept_as_refined_gives_nothing_back():
    """However large lambda2 is: it takes the LoRAs out and leaves W', where Eq. 7's own takes W' back to W."""
    for key in SHAPES:
        after = refined(key, (1.0,) * 4) - weight_of(key)
        close(exact(solve(FuseWeights(lambda2=1e12, pull=ALL_TO_REFINED)), key), after, rtol=1e-6)
        alone = solve(FuseWeights(lambda2=7.0, lambda3=2.0, mu=0.1, pull=ALL_TO_REFINED), loras=[{}] * 4)
        close(exact(alone, key), after)
        assert exact(solve(FuseWeights(lambda2=1e12)), key).abs().max() < 1e-6 * after.abs().max()


def test_mu_pulls_to_where_it_is_told():
    for key in SHAPES:
        after = refined(key, (1.0,) * 4) - weight_of(key)
        close(exact(solve(FuseWeights(mu=1e12)), key), after, rtol=1e-6)
        assert exact(solve(FuseWeights(mu=1e12, pull=TO_BASE)), key).abs().max() < 1e-6 * after.abs().max()


def test_a_strong_prior_keeps_the_weights():
    changes = [exact(solve(FuseWeights(lambda2=x)), "block.40.to_k").norm() for x in (0.01, 1.0, 1e2, 1e8)]
    assert all(more > less for more, less in zip(changes, changes[1:], strict=False))
    assert changes[-1] < 1e-4


def test_without_a_moment_its_weight_does_nothing():
    plain = RefineWeights(mu=0.7)

    def without(**moments):
        return fuse(MOMENTS, LORAS, plain, ALL, **moments)

    same(without(), solve(FuseWeights(mu=0.4), refine=plain))
    same(without(prior=gram(PRIOR)), solve(FuseWeights(lambda2=0.03, mu=0.4), refine=plain))
    same(without(preserve=gram(PRESERVE)), solve(FuseWeights(lambda3=2.0, mu=0.4), refine=plain))


# A concept without a LoRA.


def test_without_a_lora_the_target_is_the_refinement():
    """W* is Eq. 19's W' for the targets W T e at all tokens e of the concept."""
    delta = refinement(MOMENTS[:1], REFINE, gram(PRIOR), gram(PRESERVE))
    every = gram(TOKENS[0])
    target = ConceptMoments(every + delta @ every, pack(every), pack(every), len(TOKENS[0]), 1)
    expected = refinement([target], RefineWeights(0.03, 2.0, 0.4), gram(PRIOR), gram(PRESERVE))
    found = solve(WEIGHTS["all, mu to base"], moments=MOMENTS[:1], loras=[{}])
    assert not found.stacks
    close(found.shared, expected)


def test_without_loras_and_priors_nothing_is_added():
    """With mu alone, pulling to W', W* is W'."""
    close(solve(WEIGHTS["mu"], loras=[{}] * 4).shared, refinement(MOMENTS, REFINE, gram(PRIOR), gram(PRESERVE)))


def test_a_concept_without_a_lora_stays_in_the_sums():
    """It is as a concept whose LoRA is 0."""
    nothing = {key: (torch.zeros_like(up), down) for key, (up, down) in LORAS[1].items()}
    same(solve(loras=[LORAS[0], {}, *LORAS[2:]]), solve(loras=[LORAS[0], nothing, *LORAS[2:]]))
    fewer = solve(moments=[MOMENTS[i] for i in (0, 2, 3)], loras=[LORAS[i] for i in (0, 2, 3)])
    assert (solve(loras=[LORAS[0], {}, *LORAS[2:]]).shared - fewer.shared).abs().max() > 1e-3


def test_projections_missing_in_a_lora():
    fusion = solve()
    ranks = {key: up.shape[1] for key, (up, _) in fusion.stacks.items()}
    assert ranks == {key: 1 + 3 + (2 if key in KEYS else 1) for key in SHAPES}
    bare = solve(loras=[{}, {}, LORAS[2], {}])
    assert list(bare.stacks) == KEYS
    for key in VALUES:
        assert torch.equal(bare.delta(key, weight_of(key)), weight_of(key).float() @ bare.shared.float())


# Strength: the targets are scaled, the moments are not.


def test_all_strengths_one_is_no_strengths():
    found, expected = solve(strengths=[1.0] * 4), solve()
    assert torch.equal(found.shared, expected.shared)
    for key in SHAPES:
        assert torch.equal(found.delta(key, weight_of(key)), expected.delta(key, weight_of(key)))


def test_strength_is_linear_in_the_target():
    one, other = [1.0, 0.2, 0.4, 0.9], [0.1, 0.8, 0.6, 1.0]
    middle = solve(strengths=[0.3 * a + 0.7 * b for a, b in zip(one, other, strict=True)])
    for key in SHAPES:
        expected = 0.3 * exact(solve(strengths=one), key) + 0.7 * exact(solve(strengths=other), key)
        close(exact(middle, key), expected)
        close(exact(solve(strengths=[0.25] * 4), key), 0.25 * exact(solve(), key))


def test_a_concept_at_zero_leaves_the_sums():
    fewer = solve(strengths=[1.0, 0.5], moments=MOMENTS[1:3], loras=LORAS[1:3])
    same(solve(strengths=[0.0, 1.0, 0.5, 0.0]), fewer)
    step = exact(solve(strengths=[1e-9, 1.0, 0.5, 0.0]), "block.24.to_k") - exact(fewer, "block.24.to_k")
    assert float(step.abs().max()) > 1e-4  # just above 0 its moments are in the sums


def test_order_of_concepts_does_not_matter():
    strengths = [1.0, 0.25, 0.01, 0.6]
    same(solve(strengths=strengths[::-1], moments=MOMENTS[::-1], loras=LORAS[::-1]), solve(strengths=strengths))


# The weighted sum of Eq. 6.


@pytest.mark.parametrize("strengths", [None, *STRENGTHS], ids=str)
def test_naive(strengths):
    given = strengths or [1.0] * 4
    fusion = naive(LORAS, refinement(MOMENTS, REFINE, gram(PRIOR), gram(PRESERVE), strengths), strengths)
    count = sum(s > 0 for s in given)
    omegas = [s / count for s in given]
    for key in SHAPES:
        zero = torch.zeros(SHAPES[key], WIDTH, dtype=torch.float64)
        products = [oracle_fuse.product(*own[key]) if key in own else zero for own in LORAS]
        close(
            weight_of(key) + exact(fusion, key), oracle_fuse.weighted_sum(refined(key, tuple(given)), products, omegas)
        )


# Inputs: dtypes, what stays as it is, application to a weight.


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("mixed", [False, True])
def test_dtype_of_the_loras(dtype, mixed):
    """Their values are taken as they are: as if they had been given in float32."""
    given = [{k: (b.to(dtype), a.to(dtype)) for k, (b, a) in own.items()} for own in LORAS]
    given[2:] = LORAS[2:] if mixed else given[2:]
    exactly = [{k: (b.float(), a.float()) for k, (b, a) in own.items()} for own in given]
    delta = refinement(MOMENTS, REFINE)
    for found, expected in ((solve(loras=given), solve(loras=exactly)), (naive(given, delta), naive(exactly, delta))):
        for key, (up, rows) in expected.stacks.items():
            assert torch.equal(found.stacks[key][0], up) and torch.equal(found.stacks[key][1], rows)
            assert up.dtype == torch.float32 and rows.dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_delta_of_a_weight(dtype):
    """Float32 products, within float32's rounding of the float64 ones, for any dtype of the weight."""
    fusion = solve()
    for key in SHAPES:
        weight = weight_of(key).to(dtype)
        before = weight.clone()
        found = fusion.delta(key, weight)
        assert found.dtype == torch.float32 and torch.equal(weight, before)
        up, rows = fusion.stacks[key]
        expected = weight.double() @ fusion.shared + up.double() @ rows
        assert float((found.double() - expected).norm() / expected.norm()) < 1e-6


def test_inputs_stay_as_they_are():
    before = [(m.cross.clone(), m.paired.clone(), m.total.clone()) for m in MOMENTS]
    pairs = [{k: (b.clone(), a.clone()) for k, (b, a) in own.items()} for own in LORAS]
    prior, preserve = gram(PRIOR), gram(PRESERVE)
    for _ in range(2):
        fusion = fuse(MOMENTS, LORAS, REFINE, ALL, prior, preserve, [1.0, 0.5, 0.2, 0.0])
        first = fusion.delta("block.8.to_k", weight_of("block.8.to_k"))
        assert torch.equal(first, fusion.delta("block.8.to_k", weight_of("block.8.to_k")))
    assert torch.equal(prior, gram(PRIOR)) and torch.equal(preserve, gram(PRESERVE))
    for m, kept in zip(MOMENTS, before, strict=True):
        assert all(torch.equal(a, b) for a, b in zip((m.cross, m.paired, m.total), kept, strict=True))
    for own, kept in zip(LORAS, pairs, strict=True):
        assert all(torch.equal(a, b) for key in own for a, b in zip(own[key], kept[key], strict=True))
