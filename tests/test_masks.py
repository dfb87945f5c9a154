"""Otsu's threshold and masks of attention maps against slow, obvious computations."""

import numpy as np
import pytest
import torch

from mace.masks.maps import average_maps, mask_of_map, otsu


def otsu_by_trying(values):
    """Every cut between two of 256 levels: the one with the largest variance between the classes."""
    levels = np.round(np.clip(values, 0, 1) * 255)
    scores = []
    for cut in range(1, 256):
        low, high = levels[levels < cut], levels[levels >= cut]
        share = len(low) * len(high) / len(levels) ** 2
        scores.append(share * (low.mean() - high.mean()) ** 2 if share else 0.0)
    best = np.flatnonzero(np.isclose(scores, max(scores), rtol=1e-9, atol=0)) + 1
    return (best.mean() - 0.5) / 255


@pytest.mark.parametrize("seed", range(5))
def test_otsu_is_the_best_of_all_cuts(seed):
    generator = np.random.default_rng(seed)
    values = np.concatenate([generator.normal(0.3, 0.1, 300), generator.normal(0.7, 0.08, 100 + 40 * seed)])
    found = otsu(torch.from_numpy(values)[None].float())
    assert float(found) == pytest.approx(otsu_by_trying(values.astype(np.float32)), abs=1e-5)


def test_rows_are_cut_apart():
    values = torch.rand(3, 500, generator=torch.Generator().manual_seed(0)) * torch.tensor([[1.0], [0.5], [0.2]])
    together = otsu(values)
    assert torch.equal(together, torch.cat([otsu(row[None]) for row in values]))


def test_two_levels_are_parted_between_them():
    values = torch.tensor([[0.2] * 30 + [0.8] * 10])
    assert float(otsu(values)) == pytest.approx(0.5, abs=0.01)


def test_layers_count_alike_whatever_their_scale_and_grid():
    fine = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(0))
    coarse = torch.ones(2, 2, 2)
    found = average_maps([1000 * fine, coarse])
    expected = (fine / fine.mean(dim=(1, 2), keepdim=True) + 1) / 2
    torch.testing.assert_close(found, expected)


def test_a_bright_square_becomes_the_mask():
    maps = torch.full((2, 8, 8), 0.1)
    maps[0, 2:6, 3:7] = 0.9
    maps[1, 0:4, 0:4] = 5.0
    masks = mask_of_map(maps, 64, 48)
    assert masks.shape == (2, 64, 48) and set(masks.unique().tolist()) == {0.0, 1.0}
    inside = torch.zeros(2, 64, 48)
    inside[0, 16:48, 18:42] = 1
    inside[1, 0:32, 0:24] = 1
    overlap = (masks * inside).sum((1, 2)) / ((masks + inside) > 0).float().sum((1, 2))
    assert (overlap > 0.85).all()


def test_maps_that_are_not_finite_are_no_empty_masks():
    maps = torch.rand(2, 8, 8)
    maps[1, 3, 3] = torch.nan
    with pytest.raises(ValueError, match="attention maps hold values that are not finite"):
        mask_of_map(maps, 32, 32)


def test_a_map_that_says_nothing_gives_an_empty_mask():
    assert not mask_of_map(torch.full((1, 8, 8), 0.3), 32, 32).any()
