"""Pictures and masks of other nodes: what is read, and what is refused by name."""

import pytest
import torch

from mace.masks.given import TOGETHER, mask_rows, read_masks, read_pictures
from mace.masks.kept import as_bytes, as_floats

PLAIN = torch.rand(2, 5, 7, 3, generator=torch.Generator().manual_seed(0))


def test_pictures_as_they_are():
    assert torch.equal(read_pictures(PLAIN, "images"), PLAIN)
    assert read_pictures(PLAIN.double(), "images").dtype == read_pictures(PLAIN.half(), "images").dtype == torch.float32


def test_one_channel_is_grey_and_a_fourth_is_left_out():
    grey = read_pictures(PLAIN[..., :1], "images")
    assert grey.shape == PLAIN.shape and all(torch.equal(grey[..., c], PLAIN[..., 0]) for c in range(3))
    assert torch.equal(read_pictures(torch.cat([PLAIN, PLAIN[..., :1]], dim=-1), "images"), PLAIN)


def test_one_picture_and_eight_bits():
    assert torch.equal(read_pictures(PLAIN[0], "images"), PLAIN[:1])
    eight = (PLAIN * 255).round().to(torch.uint8)
    assert torch.equal(read_pictures(eight, "images"), eight.float() / 255)


def test_a_little_beyond_the_scale_is_cut_off():
    read = read_pictures(PLAIN * 1.2 - 0.1, "images")
    assert torch.equal(read, (PLAIN * 1.2 - 0.1).clamp(0, 1)) and read.max() == 1 and read.min() == 0


def spoilt(value):
    pictures = PLAIN.clone()
    pictures[1, 2, 3, 0] = value
    return pictures


@pytest.mark.parametrize(
    "given, message",
    [
        (PLAIN[:0], r"the batch \[0, 5, 7, 3\] holds no picture"),
        (PLAIN[:, :0], "holds no picture"),
        (PLAIN.movedim(-1, 1), r"\[2, 3, 5, 7\] are no pictures"),
        (PLAIN[..., :2], r"\[2, 5, 7, 2\] are no pictures"),
        (PLAIN[..., 0], r"\[2, 5, 7\] are no pictures"),
        (PLAIN[None], "are no pictures"),
        (spoilt(float("nan")), "picture 2 holds values that are not finite"),
        (spoilt(float("inf")), "picture 2 holds values that are not finite"),
        (PLAIN * 255, "picture 1 holds values from .* to 25.*divide what goes to 255 by 255"),
        ((PLAIN * 255).long(), "divide what goes to 255"),
        (PLAIN * 2 - 1, "picture 1 holds values from -0.9"),
        (PLAIN.to(torch.complex64), "complex64 is neither"),
        ({"samples": PLAIN}, "dict is neither pictures nor masks"),
    ],
)
def test_what_are_no_pictures(given, message):
    with pytest.raises(ValueError, match=f"^images: .*{message}"):
        read_pictures(given, "images")


def read(given):
    return torch.cat(list(read_masks(given, "masks")))


def test_masks_in_every_shape():
    masks = PLAIN[..., 0]
    for given in (masks, masks[..., None], masks[:, None], masks.double()):
        assert torch.equal(read(given), masks)
    assert torch.equal(read(masks[0]), masks[:1])
    several = torch.stack([masks, 1 - masks], dim=1)
    assert torch.equal(read(several), several.flatten(0, 1))
    cut = masks > 0.5
    for given in (cut, cut.to(torch.uint8) * 255, cut.long()):
        assert torch.equal(read(given), cut.float())


@pytest.mark.parametrize(
    "given, message",
    [
        (PLAIN, r"\[2, 5, 7, 3\] are pictures, no masks; put Convert Image to Mask"),
        (PLAIN[:0, ..., 0], "holds no mask"),
        (PLAIN[0, 0, :, 0], "are no masks"),
        (spoilt(float("nan"))[..., 0], "mask 2 holds values that are not finite"),
        (PLAIN[..., 0] * 255, "mask 1 holds values from"),
        ([PLAIN[0, ..., 0]], "list is neither"),
    ],
)
def test_what_are_no_masks(given, message):
    with pytest.raises(ValueError, match=f"^masks: .*{message}"):
        read(given)


def test_many_masks_are_read_in_parts_and_named_by_their_place():
    many = torch.rand(2 * TOGETHER + 3, 4, 4, generator=torch.Generator().manual_seed(1))
    assert [len(part) for part in read_masks(many, "masks")] == [TOGETHER, TOGETHER, 3]
    assert torch.equal(read(many), many)
    assert mask_rows(many, "masks").data_ptr() == many.data_ptr()
    many[TOGETHER + 1] = 7
    with pytest.raises(ValueError, match=f"^masks: mask {TOGETHER + 2} holds values from 7 to 7"):
        read(many)


def test_a_byte_a_pixel():
    masks = PLAIN[..., 0]
    assert as_bytes(masks).dtype == torch.uint8
    assert float((as_floats(as_bytes(masks)) - masks).abs().max()) <= 0.5 / 255 + 1e-7
    cut = torch.tensor([[0.0, 1.0, 0.5]])
    assert as_floats(as_bytes(cut))[0, :2].tolist() == [0, 1] and as_floats(as_bytes(cut))[0, 2] >= 0.5
    assert torch.equal(as_floats(masks), masks)
