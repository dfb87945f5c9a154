"""Mask Concept with detectors and boxes in the real host, and what training makes of its masks."""

import os

import pytest
import torch
from safetensors.torch import save_file

from tests.detector_models import bert_folder, dino_weights, sam_weights
from tests.small_models import MAKERS
from tests.stages import images, report, short_of_memory, train
from tests.test_refine_node import concepts

pytestmark = pytest.mark.host

GROUNDED = "GroundingDINO + SAM"


@pytest.fixture(scope="module")
def shown(comfy_host, demo):
    """Two pictures each of a dog and a cat, the artist's own."""
    pictures = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    dog = images(comfy_host, demo, concepts(comfy_host, "dog"), images=pictures)[0]
    return images(comfy_host, demo, concepts(comfy_host, "cat"), images=pictures.flip(0), more=dog)[0]


@pytest.fixture
def mask(comfy_host, demo, shown):
    def run(backend, pictures=shown, mask=None, boxes=None, model=None, **settings):
        own = ("grow", "feather", "min_area", "nothing_found")
        common = {name: settings.pop(name) for name in own if name in settings}
        return comfy_host.run(
            "MACE_MaskConcept",
            model=model or demo[0],
            clip=demo[1],
            images=pictures,
            backend={"backend": backend, **settings},
            mask=mask,
            boxes=boxes,
            **common,
        )

    return run


@pytest.fixture(scope="module")
def weights(comfy_host):
    """The host's models folders with a detector and a segmenter in them."""
    models = comfy_host.base / "models"
    bert = bert_folder(models / "bert-base-uncased")
    for name in ("grounding-dino", "sams"):
        (models / name).mkdir(exist_ok=True)
    save_file(dino_weights(bert, pytest.MonkeyPatch(), 12), models / "grounding-dino/tiny.safetensors")
    save_file(sam_weights(), models / "sams/tiny.safetensors")


@pytest.fixture
def small(comfy_host, monkeypatch):
    """The detector looks at small pictures."""
    module = comfy_host.module("nodes.host.detectors.dino")
    monkeypatch.setattr(module.DinoDetector, "shortest", 96)


def box(x, y, width, height, **more):
    return {"x": x, "y": y, "width": width, "height": height, **more}


def test_found_by_words_and_cut_out(mask, weights, small, shown):
    node = mask(GROUNDED, box_threshold=0.0, phrase="cat = hot dog. cat")
    masks, overlay = node.result
    assert masks.shape == (4, 64, 64) and set(masks.unique().tolist()) <= {0.0, 1.0}
    assert overlay.shape == (4, 64, 64, 3) and "boxes in 2 images" in report(node)
    filled = mask(GROUNDED, shown[:1], box_threshold=0.0, segmenter="none: fill the boxes", choice="best")
    assert "dog: " in report(filled) and "2 boxes in 2 images" in report(filled)
    assert not torch.equal(filled[0], masks[:2])


def test_masks_count_by_what_found_them(comfy_host, mask, weights, small, shown, monkeypatch):
    """A device may draw them with other bits the next time; other words, settings and files are others."""
    making = comfy_host.module("nodes.stages.mask_making")
    sam = comfy_host.module("nodes.host.detectors.sam").SamSegmenter
    pictures, weight = shown[:1], comfy_host.base / "models/sams/tiny.safetensors"

    def source(masks=None, backend=GROUNDED, **settings):
        settings = dict(box_threshold=0.0) | settings if backend == GROUNDED else settings
        found = mask(backend, pictures, mask=masks, nothing_found="skip the image", **settings)[0]
        (own,) = making.fitted([found], pictures)
        return found, making.source_of(*making.without_skipped(pictures[0], own)[:2])

    first, one = source()
    segment = sam.segment

    def other_bits(self, images, boxes):
        things = segment(self, images, boxes)
        for own in things:
            own[:, 0, 0] = 1 - own[:, 0, 0]
        return things

    with monkeypatch.context() as patched:
        patched.setattr(sam, "segment", other_bits)
        again, same = source()
    assert not torch.equal(first, again) and one == same is not None
    others = [source(phrase="hot dog"), source(box_threshold=0.01), source(segmenter="none: fill the boxes")]
    os.utime(weight, ns=(0, weight.stat().st_mtime_ns + 1))
    others.append(source())
    assert len({one, *(found for _, found in others)}) == 5
    # Masks that came from elsewhere have their bytes alone, and so has the whole image, whatever looked for things.
    found = mask(GROUNDED, pictures, box_threshold=1.0)[0]
    (own,) = making.fitted([found], pictures)
    assert found.all() and making.source_of(pictures[0], own) is None
    assert source(torch.ones(2, 64, 64).tril(), "external mask")[1] is None


def test_found_and_cut_out_by_transformers(comfy_host, mask, shown):
    """The folders are listed by what they hold, and the masks are those of the two models one after the other."""
    tools, models = comfy_host.module("nodes.host.detectors.tools"), comfy_host.base / "models"
    for kind, place in (("mm-grounding-dino", "grounding-dino"), ("sam2", "sams")):
        (models / place / kind).mkdir(parents=True, exist_ok=True)
        MAKERS[kind](models / place / kind)
    assert "mm-grounding-dino" in tools.detector_names("transformers")
    chosen = dict(detector="mm-grounding-dino", segmenter="sam2", phrase="dog", box_threshold=0.0)
    node = mask("transformers", **chosen)
    found = tools.detector_of("transformers", "mm-grounding-dino").detect(shown[0].as_image, "dog", 0.0, 0.25)
    segmenter = tools.segmenter_of("transformers", "sam2")
    with torch.inference_mode():
        cut = segmenter.segment(shown[0].as_image, [seen.boxes for seen in found])
    for made, things in zip(node[0], cut, strict=False):
        assert torch.equal(made, things.amax(dim=0))
    assert f"{sum(map(len, found))} boxes in 2 images" in report(node)


def test_boxes_take_the_place_of_the_detector(comfy_host, mask, weights, monkeypatch):
    """And are cut out by the segmenter; the detector is not even read."""
    tools = comfy_host.module("nodes.stages.mask_making")
    monkeypatch.setattr(tools, "detector_of", None)
    node = mask(GROUNDED, boxes=[[box(8, 8, 40, 40)], [], [box(0, 0, 64, 20)], [box(2, 2, 9, 9)]])
    segmenter = comfy_host.module("nodes.host.detectors.tools").segmenter_of(GROUNDED, "tiny.safetensors")
    assert node[0][1].all() and "dog: 1 of 2 masks were empty; the whole image" in report(node)
    pictures = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    eight = (pictures * 255).round() / 255
    with torch.inference_mode():
        (expected,) = segmenter.segment(eight[:1], [torch.tensor([[8.0, 8, 48, 48]])])
    assert float((node[0][0] != expected[0]).float().mean()) < 0.01


def test_boxes_are_filled(mask):
    whole = torch.zeros(64, 64)
    whole[8:24, 4:14] = 1
    node = mask("boxes", boxes=box(4, 8, 10, 16))
    assert all(torch.equal(own, whole) for own in node[0])
    # The frame is drawn in blue where the box is.
    assert node[1][0, 8, 4, 2] > 0.9 and node[1][0, 8, 4, 0] < 0.3
    two = [box(4, 8, 10, 16, score=0.4), box(40, 40, 4, 4, score=0.9)]
    both = mask("boxes", boxes=two)[0]
    assert both[0].sum() == 160 + 16
    assert mask("boxes", boxes=two, choice="best")[0][0].sum() == 16
    assert mask("boxes", boxes=two, combine="largest")[0][0].sum() == 160
    assert mask("boxes", boxes=two, min_area=0.01)[0][0].sum() == 160
    assert mask("boxes", boxes=two, grow=2)[0][0].sum() > 176 + 2 * (52 + 16)
    soft = mask("boxes", boxes=two, feather=3)[0][0]
    assert 0 < float(soft[8, 14]) < 0.5 < float(soft[8, 10]) < 1
    with pytest.raises(ValueError, match="boxes input is empty"):
        mask("boxes")
    with pytest.raises(ValueError, match="boxes for 3 images, not for 4"):
        mask("boxes", boxes=[[], [], []])


def test_what_is_done_where_nothing_is_found(mask):
    some = [[box(0, 0, 8, 8)], [], [box(0, 0, 8, 8)], [box(1, 1, 9, 9)]]
    node = mask("boxes", boxes=some)
    assert node[0][1].all() and not node[0][0].all()
    node = mask("boxes", boxes=some, nothing_found="skip the image")
    assert not node[0][1].any() and node[0][2].sum() == 64
    with pytest.raises(ValueError, match=r"dog: 1 of 2 masks were empty \(images 2\): lower the threshold"):
        mask("boxes", boxes=some, nothing_found="error")


def test_the_rules_hold_for_external_masks_too(mask):
    given = torch.zeros(4, 64, 64)
    # Masks are kept in eight bits.
    given[1:, 20:24, 20:24] = 191 / 255
    assert torch.equal(mask("external mask", mask=given, nothing_found="skip the image")[0], given)
    assert mask("external mask", mask=given, min_area=0.1)[0].all()
    assert torch.equal(mask("external mask", mask=given[..., None], nothing_found="skip the image")[0], given)
    with pytest.raises(ValueError, match="masks: mask 1 holds values that are not finite"):
        mask("external mask", mask=given * torch.nan)
    grown = mask("external mask", mask=given, grow=3)[0]
    assert float(grown[1, 17, 22]) == float(given[1, 20, 20]) and float(grown[1, 16, 22]) == 0


def test_attentions_masks_are_what_they_were(comfy_host, demo, mask, shown):
    making = comfy_host.module("nodes.stages.mask_making")
    encoder = comfy_host.module("nodes.host.text").TextEncoder(demo[1])
    with torch.inference_mode():
        expected = making.attention_masks(demo[0], encoder, shown[0])
    node = mask("attention", shown[:1])
    filled = expected.flatten(1).any(dim=1)
    assert torch.equal(node[0][filled], expected[filled]) and node[0][~filled].all()


def test_a_size_that_memory_has_no_room_for_is_tried_once(comfy_host, demo, mask, weights, small, shown, monkeypatch):
    """For all concepts: by the model that looks, by the detector and by the segmenter."""
    model, asked = short_of_memory(demo[0], 1)
    mask("attention", model=model)
    assert asked == [2, *[1] * 12]
    plain = mask(GROUNDED, box_threshold=0.0)[0]
    dino, sam = (comfy_host.module(f"nodes.host.detectors.{name}") for name in ("dino", "sam"))
    detected, cut, detect, segment = [], [], dino.DinoDetector._forward, sam._masks

    def one_fits(pictures, seen):
        seen.append(len(pictures))
        if len(pictures) > 1:
            raise torch.cuda.OutOfMemoryError("no memory")

    monkeypatch.setattr(
        dino.DinoDetector, "_forward", lambda self, *given: one_fits(given[0], detected) or detect(self, *given)
    )
    monkeypatch.setattr(sam, "_masks", lambda *given: one_fits(given[1], cut) or segment(*given))
    assert torch.equal(mask(GROUNDED, box_threshold=0.0)[0], plain)
    assert detected == cut == [2, 1, 1, 1, 1]


def test_styles_need_no_detector(comfy_host, demo, mask):
    """Of styles alone nothing is looked for, so that neither packages nor files are asked for."""
    style = concepts(comfy_host, "Twemoji -> art", type="style")
    pictures = images(comfy_host, demo, style, images=torch.rand(1, 64, 64, 3))[0]
    assert mask("transformers", pictures)[0].all()
    assert mask("boxes", pictures, boxes=box(0, 0, 4, 4))[0].all()


def test_bad_phrases_are_told_before_anything_is_read(mask):
    with pytest.raises(ValueError, match="there is no concept 'horse'"):
        mask(GROUNDED, phrase="horse = animal")
    with pytest.raises(ValueError, match="line 1: 'dog =' is not a phrase"):
        mask(GROUNDED, phrase="dog =")


def test_people_are_looked_for_by_kind(comfy_host, demo, mask, weights, small):
    person = concepts(comfy_host, "Tom Cruise -> a person", type="celebrity")
    pictures = images(comfy_host, demo, person, images=torch.rand(1, 64, 64, 3))[0]
    node = mask(GROUNDED, pictures, box_threshold=1.0, nothing_found="skip the image")
    assert not node[0].any() and "1 of 1 masks were empty; training skips these images" in report(node)
    assert "looked for face; another phrase may find it: Tom Cruise = ..." in report(node)
    assert "looked for tall face;" in report(mask(GROUNDED, pictures, phrase="tall face", box_threshold=1.0))


def test_training_leaves_out_images_with_empty_masks(comfy_host, demo, shown):
    """It trains on what it would train on without them; all empty is an error that names the concept."""
    model, clip, _ = demo
    given = torch.ones(2, 64, 64)
    given[1] = 0
    node = train(comfy_host, clip, model, shown[:1], masks=given, steps="1")
    assert "dog: 1 of 2 images have an empty mask and are skipped" in report(node)
    assert node[0].loras[0].settings["images"] == 1
    fewer = (shown[0].only(torch.tensor([True, False])),)
    assert "1 of 1 kept from before" in report(train(comfy_host, clip, model, fewer, masks=given[:1], steps="1"))
    given[:] = 0
    with pytest.raises(ValueError, match="all masks of 'dog' are empty, so no image is left to train it on"):
        train(comfy_host, clip, model, shown[:1], masks=given, steps="1")
