"""The reading metric against its definition, and the closed forms with it against least squares."""

import pytest
import torch

from mace.method.focus import READING_FLOOR, directions
from mace.method.fuse import TO_BASE, TO_REFINED, FuseWeights, fuse
from mace.method.metric import RIDGE, reading_metric
from mace.method.moments import ConceptMoments, pack
from mace.method.refine import READING, RefineWeights, refinement

WIDTH = 8


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def values():
    return [normal(6, WIDTH, seed=1), 3 * normal(10, WIDTH, seed=2)]


@pytest.fixture
def tokens():
    """(e_f, e_g) as columns, of fewer tokens than there are dimensions; all tokens S runs over."""
    return normal(WIDTH, 3, seed=3), normal(WIDTH, 3, seed=4), normal(WIDTH, 5, seed=5)


def moments_of(f, g, every):
    return ConceptMoments(g @ f.mT, pack(f @ f.mT), pack(every @ every.mT), f.shape[1], 1)


def square_root(metric):
    values, vectors = torch.linalg.eigh(metric)
    return vectors * values.sqrt()


def test_definition(values):
    total = torch.zeros(WIDTH, WIDTH, dtype=torch.float64)
    for weight in values:
        product = sum(torch.outer(row, row) for row in weight)
        total += product / product.trace() * WIDTH / len(values)
    assert abs(float(total.trace()) - WIDTH) < 1e-12
    expected = torch.linalg.inv(total + RIDGE * torch.eye(WIDTH, dtype=torch.float64))
    torch.testing.assert_close(reading_metric(values), expected)


def test_a_model_that_reads_all_alike_has_the_papers_metric():
    orthogonal = torch.linalg.qr(normal(WIDTH, WIDTH, seed=6))[0]
    expected = torch.eye(WIDTH, dtype=torch.float64)
    torch.testing.assert_close(reading_metric([5 * orthogonal, orthogonal]), expected, atol=2 * RIDGE, rtol=0)


def test_nothing_to_read():
    with pytest.raises(ValueError, match="no value projection"):
        reading_metric([])
    with pytest.raises(ValueError, match="no value projection that reads anything"):
        reading_metric([torch.zeros(4, WIDTH)])
    with pytest.raises(ValueError, match="not finite"):
        reading_metric([torch.full((4, WIDTH), torch.nan)])


def test_a_layer_of_zeros_does_not_count():
    values = [torch.eye(WIDTH)[:4], torch.ones(3, WIDTH) + torch.eye(WIDTH)[:3]]
    found = reading_metric([values[0], torch.zeros(5, WIDTH), values[1]])
    assert torch.equal(found, reading_metric(values))


def test_refinement_is_the_least_squares_solution(values, tokens):
    """Eq. 1 with mu tr((T - I) R (T - I)^T): rows of T by lstsq over stacked, weighted equations."""
    f, g, every = tokens
    metric, mu = reading_metric(values), 0.7
    root = mu**0.5 * square_root(metric)
    # T f = g, and T root = root.
    left, right = torch.cat([f, root], dim=1), torch.cat([g, root], dim=1)
    expected = torch.linalg.lstsq(left.mT, right.mT).solution.mT
    found = refinement([moments_of(f, g, every)], RefineWeights(mu=mu, metric=READING), metric=metric)
    torch.testing.assert_close(found + torch.eye(WIDTH, dtype=torch.float64), expected)


@pytest.mark.parametrize("pull", [TO_REFINED, TO_BASE])
def test_fusion_is_the_least_squares_solution(values, tokens, pull):
    """Eq. 7 with mu tr((W* - W') R (W* - W')^T), or W in place of W'."""
    f, g, every = tokens
    metric, mu = reading_metric(values), 0.4
    weight, up, down = normal(5, WIDTH, seed=7), normal(5, 1, seed=8).float(), normal(1, WIDTH, seed=9).float()
    concept = moments_of(f, g, every)
    weights = RefineWeights(mu=0.7, metric=READING)
    delta = refinement([concept], weights, metric=metric)
    refined = weight + weight @ delta
    root = mu**0.5 * square_root(metric)
    left = torch.cat([every, root], dim=1)
    pulled = refined if pull == TO_REFINED else weight
    right = torch.cat([(refined + up.double() @ down.double()) @ every, pulled @ root], dim=1)
    expected = torch.linalg.lstsq(left.mT, right.mT).solution.mT
    fused = fuse([concept], [{"k": (up, down)}], weights, FuseWeights(mu=mu, pull=pull), metric=metric)
    torch.testing.assert_close(weight + fused.delta("k", weight).double(), expected, rtol=1e-5, atol=1e-5)


def test_focus_measures_in_it(values, tokens):
    """No direction is better, with the metric in the criterion."""
    own, captions = (x @ x.mT for x in (normal(WIDTH, 9, seed=10), normal(WIDTH, 30, seed=11)))
    system = captions + READING_FLOOR * reading_metric(values)
    (best,) = directions(own, 9.0, pack(captions), 1, metric=reading_metric(values)).double()

    def criterion(a):
        return (a @ own @ a) / (a @ system @ a)

    assert all(criterion(normal(WIDTH, seed=seed)) < criterion(best) for seed in range(100))
    assert all(criterion(best + 0.01 * best.norm() * normal(WIDTH, seed=s)) < criterion(best) for s in range(100))


def test_another_metric_is_refused():
    with pytest.raises(ValueError, match="alike or reading"):
        RefineWeights(mu=1.0, metric="far")
