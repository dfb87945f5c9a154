"""Focus against the least squares it stands for, written out over the tokens."""

import pytest
import torch

from mace.focus import MU, focus, focused
from mace.moments import pack

WIDTH = 12


def tokens(count, seed):
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_it_keeps_the_concepts_tokens_and_drops_the_captions():
    """K minimises sum |K e - e|^2 over the concept's tokens, w sum |K p|^2 over the captions', and mu |K|^2."""
    own, captions, weight = tokens(9, 0), tokens(30, 1), 0.7
    rows = torch.cat([own, weight**0.5 * captions, MU**0.5 * torch.eye(WIDTH, dtype=torch.float64)])
    wanted = torch.cat([own, torch.zeros(30 + WIDTH, WIDTH, dtype=torch.float64)])
    expected = torch.linalg.lstsq(rows, wanted).solution.mT
    torch.testing.assert_close(focus(pack(own.mT @ own), captions.mT @ captions, weight), expected)


def test_what_captions_hold_is_dropped_and_what_they_lack_is_kept():
    """Directions 0..3 are in concept and captions alike, 4..7 the concept's alone."""
    scale = torch.zeros(WIDTH, dtype=torch.float64)
    scale[:8] = 100.0
    own = torch.diag(scale)
    captions = torch.diag(torch.where(torch.arange(WIDTH) < 4, 1000.0, 0.0).double())
    matrix = focus(pack(own @ own), captions @ captions, 1.0)
    e = torch.ones(2, WIDTH)
    found = focused(e, matrix)
    assert found.dtype == e.dtype and float(found[0, :4].max()) < 0.02 and float(found[0, 4:8].min()) > 0.99


def test_embeddings_are_columns():
    matrix = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    e = tokens(6, 3).reshape(2, 3, WIDTH)
    torch.testing.assert_close(focused(e, matrix)[1, 2], matrix @ e[1, 2])


@pytest.mark.parametrize("weight", [0.0, -1.0, float("inf"), float("nan")])
def test_other_weights_are_refused(weight):
    with pytest.raises(ValueError, match="focus must be above 0"):
        focus(pack(torch.eye(WIDTH, dtype=torch.float64)), torch.eye(WIDTH, dtype=torch.float64), weight)
