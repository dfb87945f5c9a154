"""CFIS (Eq. 5) against the formula, its sampler against its density."""

import math

import pytest
import torch
from scipy.stats import chisquare

from mace.method.schedule import Cfis, Uniform


def written_out(t1, t2, gamma, steps=1000):
    """Eq. 5 in plain floats, the normaliser summed exactly over the integers."""

    def sigmoid(x):
        return 1 / (1 + math.exp(-x))

    xi = [sigmoid(gamma * (t - t1)) - sigmoid(gamma * (t - t2)) for t in range(steps)]
    return [x / math.fsum(xi) for x in xi]


@pytest.mark.parametrize("t1, t2, gamma", [(200, 400, 0.05), (0, 1000, 0.01), (500, 501, 0.3), (100, 900, 0.5)])
def test_the_density_is_eq_5(t1, t2, gamma):
    density = Cfis(t1, t2, gamma).density()
    assert density.dtype == torch.float64 and density.shape == (1000,)
    assert density.tolist() == pytest.approx(written_out(t1, t2, gamma), rel=1e-9, abs=1e-15)


def test_the_defaults_are_the_papers():
    assert Cfis() == Cfis(t1=200, t2=400, gamma=0.05)


@pytest.mark.parametrize("gamma", [1e-9, 0.05, 1.0, 50.0, 1e6, 1e306])
def test_the_density_sums_to_one_at_any_gamma(gamma):
    density = Cfis(gamma=gamma).density()
    assert density.sum().item() == pytest.approx(1, abs=1e-12)
    assert (density >= 0).all()


def test_a_steep_gamma_draws_the_interval_only_and_a_flat_one_everything():
    steep = Cfis(gamma=1e6).density()
    expected = torch.zeros(1000, dtype=torch.float64)
    expected[201:400] = 1.0
    expected[[200, 400]] = 0.5  # sigmoid(0) at either end
    torch.testing.assert_close(steep, expected / 200, rtol=1e-12, atol=0)
    # At 1e-9 the difference of sigmoids as printed is rounding alone in its eighth digit.
    torch.testing.assert_close(Cfis(gamma=1e-9).density(), Uniform().density(), rtol=1e-6, atol=0)


def test_the_tails_keep_their_digits():
    density = Cfis(gamma=0.2).density()
    assert (density[1:201] > density[:200]).all() and (density[400:999] > density[401:]).all()
    # Far from the interval xi falls by e^-gamma a step.
    assert (density[999] / density[998]).item() == pytest.approx(math.exp(-0.2), rel=1e-12)


@pytest.mark.parametrize("t1, t2, gamma", [(200, 400, 0.05), (100, 301, 0.02)])
def test_the_density_is_symmetric_about_the_middle_of_the_interval(t1, t2, gamma):
    density = Cfis(t1, t2, gamma).density()
    mirrored = density[: t1 + t2 + 1]
    torch.testing.assert_close(mirrored, mirrored.flip(0), rtol=1e-12, atol=0)
    assert density.argmax().item() in ((t1 + t2) // 2, (t1 + t2 + 1) // 2)


def test_other_numbers_of_steps():
    assert Cfis(10, 20, 0.5).density(50).tolist() == pytest.approx(written_out(10, 20, 0.5, steps=50))
    assert Uniform().density(4).tolist() == [0.25] * 4
    drawn = Cfis(0, 4, 0.1).sample(500, torch.Generator().manual_seed(0), steps=4)
    assert set(drawn.tolist()) == {0, 1, 2, 3}


def chi_square(drawn, density):
    """p of the draws under the density, in bins of 20 steps, those expecting fewer than 5 draws as one."""
    expected = density.view(-1, 20).sum(dim=1) * len(drawn)
    seen = torch.bincount(drawn, minlength=1000).view(-1, 20).sum(dim=1).double()
    rare = expected < 5
    if rare.any():
        expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
        seen = torch.cat([seen[~rare], seen[rare].sum()[None]])
    return chisquare(seen.numpy(), expected.numpy()).pvalue


@pytest.mark.parametrize("timesteps", [Cfis(), Cfis(300, 800, 0.01), Uniform()])
def test_the_sampler_draws_from_the_density(timesteps):
    drawn = timesteps.sample(50_000, torch.Generator().manual_seed(7))
    assert drawn.dtype == torch.int64 and drawn.shape == (50_000,)
    assert chi_square(drawn, timesteps.density()) > 0.01
    # The test sees a density that is only slightly another.
    assert chi_square(drawn, Cfis(205, 405).density()) < 1e-6


def test_the_same_seed_draws_the_same_and_the_stream_moves_on():
    first, second = (torch.Generator().manual_seed(3) for _ in range(2))
    drawn = Cfis().sample(20, first)
    assert torch.equal(drawn, Cfis().sample(20, second))
    assert not torch.equal(drawn, Cfis().sample(20, first))


@pytest.mark.parametrize("t1, t2", [(400, 400), (401, 400), (-1, 400), (math.nan, 400), (200, math.nan)])
def test_bad_intervals_are_refused(t1, t2):
    with pytest.raises(ValueError, match="t1"):
        Cfis(t1, t2)


@pytest.mark.parametrize("gamma", [0, -0.05, math.nan, math.inf])
def test_bad_gammas_are_refused(gamma):
    with pytest.raises(ValueError, match="gamma"):
        Cfis(gamma=gamma)


def test_an_interval_beyond_the_model_is_refused():
    with pytest.raises(ValueError, match="1001.*1000"):
        Cfis(200, 1001).density()
    with pytest.raises(ValueError, match="100 timesteps"):
        Cfis().sample(1, torch.Generator(), steps=100)
    with pytest.raises(ValueError, match="at least one"):
        Uniform().density(0)
