"""Attention masks of known outlines: benchmarks.masks on eight things; all of them are in docs/masks.md."""

import pytest

from benchmarks.masks import ATTENTION, KINDS, WHOLE, Masker, icons, measured, summary

pytestmark = pytest.mark.host
THINGS = list(icons())[::26]
# Of the gap between the whole image and a perfect mask on the grid. Measured: 0.58.
GAP_CLOSED = 0.5


@pytest.fixture(scope="module")
def rows(comfy_host, demo):
    return measured(Masker(comfy_host, *demo), THINGS)[0]


def test_attention_masks_close_half_of_the_gap(rows):
    found = summary(rows)["all"]
    assert found["things"] == len(THINGS) == 8
    assert found["gap closed"] > GAP_CLOSED, found


def test_each_is_better_than_the_whole_image(rows):
    assert set(rows) == set(THINGS) and all(set(row) == set(KINDS) for row in rows.values())
    for name, row in rows.items():
        assert sum(row[ATTENTION]) > sum(row[WHOLE]), name
