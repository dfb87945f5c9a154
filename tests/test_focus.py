"""Focus against its criterion, tried out on many directions."""

import pytest
import torch

from mace.method.focus import FLOOR, directions, selected_moment
from mace.method.moments import pack

WIDTH = 12


def tokens(count, seed):
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def criterion(a, own, captions):
    return (a @ own @ a) / (a @ (captions + FLOOR * torch.eye(WIDTH, dtype=torch.float64)) @ a)


@pytest.fixture
def moments():
    own, captions = tokens(9, 0), tokens(30, 1)
    return own.mT @ own, captions.mT @ captions / 3


def test_no_direction_is_better(moments):
    own, captions = moments
    (best,) = directions(own, 9.0, pack(captions), 1).double()
    value = criterion(best, own, captions)
    for seed in range(200):
        assert criterion(tokens(1, seed)[0], own, captions) < value
        near = best + 0.02 * best.norm() * tokens(1, seed)[0] / WIDTH**0.5
        assert criterion(near, own, captions) < value


def test_further_rows_are_the_next_best_and_each_its_own(moments):
    own, captions = moments
    rows = directions(own, 9.0, pack(captions), 3).double()
    values = [float(criterion(row, own, captions)) for row in rows]
    expected = torch.linalg.eigvals(
        torch.linalg.solve(captions + FLOOR * torch.eye(WIDTH, dtype=torch.float64), own)
    ).real.sort(descending=True)[0][:3]
    torch.testing.assert_close(torch.tensor(values, dtype=torch.float64), expected, rtol=1e-4, atol=0)
    system = captions + FLOOR * torch.eye(WIDTH, dtype=torch.float64)
    assert abs(float(rows[0] @ system @ rows[1])) < 1e-4 * float(rows[0] @ system @ rows[0])


def test_rows_answer_as_a_random_start_would(moments):
    own, captions = moments
    rows = directions(own, 9.0, pack(captions), 2).double()
    answers = ((rows @ own) * rows).sum(dim=1) / 9
    torch.testing.assert_close(answers, (own.trace() / 9 / 4).expand(2), rtol=1e-4, atol=0)
    assert torch.equal(directions(own, 9.0, pack(captions), 2), directions(own.clone(), 9.0, pack(captions), 2))


def test_what_is_selected():
    """The phrase's tokens count one each, end-of-text and padding one a prompt together; summed one by one."""
    e = tokens(10, 3).reshape(2, 5, WIDTH)
    phrase = torch.tensor([[0, 1, 1, 0, 0], [0, 1, 0, 0, 0]])
    end = torch.tensor([[0, 0, 0, 1, 1], [0, 0, 1, 1, 1]])
    for ends in (None, end):
        expected = torch.zeros(WIDTH, WIDTH, dtype=torch.float64)
        for p in range(2):
            for n in range(5):
                weight = float(phrase[p, n]) + (0 if ends is None else float(end[p, n]) / float(end[p].sum()))
                expected += weight * torch.outer(e[p, n], e[p, n])
        found, total = selected_moment(e, phrase, ends)
        torch.testing.assert_close(found, expected)
        assert total == pytest.approx(3 if ends is None else 5)


@pytest.mark.parametrize("rank", [0, WIDTH + 1])
def test_a_rank_out_of_range_is_refused(moments, rank):
    with pytest.raises(ValueError, match="rank must lie between 1 and 12"):
        directions(moments[0], 9.0, pack(moments[1]), rank)
