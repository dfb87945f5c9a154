"""Boxes, phrases, and masks of several things, against slow, obvious computations."""

import math

import numpy as np
import pytest
import torch

from mace.concepts.concept import Concept
from mace.concepts.phrases import caption_of, phrases_of
from mace.masks.boxes import box_masks, ordered, read_boxes
from mace.masks.maps import feather, grow, one_mask


def box(x, y, width, height, **more):
    return {"x": x, "y": y, "width": width, "height": height, **more}


def test_one_box_and_a_list_hold_for_every_picture():
    for given in (box(1, 2, 3, 4), [box(1, 2, 3, 4)], [[box(1, 2, 3, 4)]]):
        read = read_boxes(given, 3, 10, 10)
        assert len(read) == 3
        for boxes, scores, labels in read:
            assert boxes.tolist() == [[1, 2, 4, 6]] and scores.tolist() == [1] and labels == ("",)


def test_lists_of_lists_are_by_picture():
    given = [[box(0, 0, 5, 5, score=0.2, label="a"), box(2, 2, 20, 3, score=0.9)], [], None]
    first, second, third = read_boxes(given, 3, 8, 10)
    assert first[0].tolist() == [[2, 2, 10, 5], [0, 0, 5, 5]] and first[2] == ("", "a")
    torch.testing.assert_close(first[1], torch.tensor([0.9, 0.2]))
    assert second[0].shape == third[0].shape == (0, 4) and len(second[1]) == 0


def test_what_is_not_said_of_a_box():
    given = [box(0, 0, 5, 5, score=None, label=None), box(1, 1, 2, 2, score=0.5, label=7)]
    ((boxes, scores, labels),) = read_boxes(given, 1, 8, 8)
    assert scores.tolist() == [1.0, 0.5] and labels == ("", "7") and len(boxes) == 2
    ((boxes, scores, _),) = read_boxes(box(torch.tensor(1.0), np.float32(2), 3, 4, score=torch.tensor(0.25)), 1, 9, 9)
    assert boxes.tolist() == [[1, 2, 4, 6]] and scores.tolist() == [0.25]


def test_no_boxes_at_all_is_nothing_found():
    assert [len(boxes) for boxes, _, _ in read_boxes([], 2, 8, 8)] == [0, 0]


@pytest.mark.parametrize(
    "given, message",
    [
        ([[], []], "boxes for 2 images, not for 3"),
        ("12", "str is not a BOUNDING_BOX"),
        (7, "int is not a BOUNDING_BOX"),
        ([[1, 2, 3, 4]], "1 is not a box with x, y"),
        ([{"x": 1, "y": 2}], "is not a box with x, y"),
        ([3, 4, 5], "3 is not a list of boxes"),
        (box(1, 2, math.nan, 4), "width': nan.* holds a number that is not finite"),
        (box(1, math.inf, 3, 4), "not finite"),
        (box(1, 2, 3, 4, score=math.nan), "'score': nan.* not finite"),
        (box(1, 2, 3, 4, score="high"), "'score': 'high'.* is not a box"),
        (box(1, 2, 3, 10**400), "is not a box"),
        (box(1, 2, 3, None), "is not a box"),
        (box(1, 2, 3, torch.zeros(2)), "is not a box"),
        ([[[1, 2, 3, 4]]], "is not a box"),
    ],
)
def test_what_are_no_boxes(given, message):
    with pytest.raises(ValueError, match=message):
        read_boxes(given, 3, 8, 8)


def test_boxes_beyond_the_picture_are_cut_off_or_dropped():
    boxes = torch.tensor([[-3.0, -3, 4, 4], [20, 0, 30, 5], [1, 1, 1, 5], [2, 3, 9, 99]])
    kept, scores, labels = ordered(boxes, torch.tensor([0.5, 0.9, 0.8, 0.5]), list("abcd"), 8, 9)
    assert kept.tolist() == [[0, 0, 4, 4], [2, 3, 9, 8]] and labels == ("a", "d") and scores.tolist() == [0.5, 0.5]


def test_a_box_fills_the_pixels_whose_middle_is_in_it():
    boxes = torch.rand(20, 4, generator=torch.Generator().manual_seed(0)) * 9
    boxes[:, 2:] += boxes[:, :2]
    found = box_masks(boxes, 12, 16)
    for (left, top, right, bottom), mask in zip(boxes.tolist(), found, strict=True):
        inside = [[left <= x + 0.5 < right and top <= y + 0.5 < bottom for x in range(16)] for y in range(12)]
        expected = torch.tensor(inside).float()
        if expected.any():
            assert torch.equal(mask, expected)
        assert mask.any()
    assert box_masks(torch.tensor([[3.1, 4.1, 3.2, 4.2]]), 8, 8)[0].nonzero().tolist() == [[4, 3]]
    assert box_masks(torch.zeros(0, 4), 5, 6).shape == (0, 5, 6)


def test_things_together_or_the_largest():
    things = torch.zeros(3, 10, 10)
    things[0, :2, :2], things[1, 5:, 5:], things[2, 0, :] = 1, 1, 0.5
    assert torch.equal(one_mask(things), things.amax(0))
    assert torch.equal(one_mask(things, "largest"), things[1])
    assert torch.equal(one_mask(things, "union", 0.045), things[1:].amax(0))
    assert not one_mask(things, "union", 0.3).any() and not one_mask(things[:0]).any()
    twice = torch.stack([things[1].flip(0), things[1]])
    assert torch.equal(one_mask(twice, "largest"), twice[0])


@pytest.mark.parametrize("pixels", [1, 2, 5, 30])
def test_grown_masks_by_every_pair_of_pixels(pixels):
    masks = (torch.rand(2, 13, 17, generator=torch.Generator().manual_seed(pixels)) - 0.93).clamp_min(0) * 10
    expected = torch.zeros_like(masks)
    for y, x in np.ndindex(13, 17):
        for v, u in np.ndindex(13, 17):
            if math.hypot(y - v, x - u) <= pixels:
                expected[:, y, x] = torch.maximum(expected[:, y, x], masks[:, v, u])
    before = masks.clone()
    assert torch.equal(grow(masks, pixels), expected) and torch.equal(masks, before)
    torch.testing.assert_close(grow(1 - masks, -pixels), 1 - expected)
    assert grow(masks, 0) is masks


def test_feathered_masks_by_the_sum_over_neighbours():
    masks = (torch.rand(2, 9, 11, generator=torch.Generator().manual_seed(3)) > 0.6).float()
    pixels = 3
    weights = np.exp(-0.5 * (np.arange(-pixels, pixels + 1) / (pixels / 2)) ** 2)
    expected = torch.zeros_like(masks)
    for y, x in np.ndindex(9, 11):
        for dy, dx in np.ndindex(7, 7):
            v, u = min(max(y + dy - pixels, 0), 8), min(max(x + dx - pixels, 0), 10)
            expected[:, y, x] += masks[:, v, u] * float(weights[dy] * weights[dx] / weights.sum() ** 2)
    torch.testing.assert_close(feather(masks, pixels), expected)
    torch.testing.assert_close(feather(torch.ones(1, 4, 5), 20), torch.ones(1, 4, 5))
    assert feather(masks, 0) is masks


def concepts(*targets, type="object"):
    return [Concept(target, "x", type) for target in targets]


def test_phrases_by_concept():
    chosen = concepts("Tom Cruise", "dog")
    assert phrases_of("", chosen) == ["Tom Cruise", "dog"]
    assert phrases_of("face", chosen) == ["face", "face"]
    assert phrases_of("tom cruise = a  face # of his\n\n* = thing", chosen) == ["a face", "thing"]
    assert phrases_of("dog = hot dog", chosen) == ["Tom Cruise", "hot dog"]


def test_people_are_a_kind_of_thing():
    chosen = concepts("Tom Cruise", "Amy Adams", type="celebrity") + concepts("nudity", type="explicit")
    assert phrases_of("", chosen) == ["face", "face", "person"]
    assert phrases_of("amy adams = woman", chosen) == ["face", "woman", "person"]


@pytest.mark.parametrize(
    "text, message",
    [
        ("dog =", "line 1: 'dog =' is not a phrase"),
        ("a\nb", "line 2: '\\*' has a phrase already"),
        (" = face", "line 1"),
        ("cow = face", "there is no concept 'cow' in the list"),
        ("dog = . .", "line 1"),
    ],
)
def test_bad_phrases(text, message):
    with pytest.raises(ValueError, match=message):
        phrases_of(text, concepts("dog"))


def test_captions_end_every_thing_with_a_full_stop():
    assert caption_of("Hot  Dog") == "hot dog."
    assert caption_of("cat. Dog,. ") == "cat. dog."
    assert caption_of(" . ") == ""
