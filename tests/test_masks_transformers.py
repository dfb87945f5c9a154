"""Grounding DINO and SAM by transformers: its own architectures at small sizes, random weights, read from folders."""

import pytest
import torch
import transformers

from tests.small_models import (
    BOXES,
    DETECTORS,
    MAKERS,
    QUERIES,
    SEGMENTERS,
    load_models,
    make_folders,
    noise,
    same,
)

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def module(comfy_host):
    return comfy_host.module("nodes.host.detectors.transformers_models")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return make_folders(tmp_path_factory)


@pytest.fixture(scope="module")
def models(module, folders):
    return load_models(module, folders)


@pytest.mark.parametrize(
    "phrase, expected",
    [
        ("Dog", "dog."),
        ("old man  with a hat", "old man with a hat."),
        ("Red Car, dog", "red car. dog."),
        ("a cat . a dog .", "a cat. a dog."),
        (" ,cat,, ", "cat."),
    ],
)
def test_phrases_become_prompts(module, phrase, expected):
    assert module.prompt_of(phrase) == expected


@pytest.mark.parametrize("phrase", ["", " , . "])
def test_a_phrase_without_words_is_refused(module, phrase):
    with pytest.raises(ValueError, match="holds no word to look for"):
        module.prompt_of(phrase)


@pytest.mark.parametrize("kind", DETECTORS)
def test_boxes_are_those_of_transformers_own_way(folders, models, kind):
    """Its documented way, on one picture, against ours."""
    pictures = noise(1)
    processor = transformers.GroundingDinoProcessor.from_pretrained(folders[kind])
    model = transformers.AutoModelForZeroShotObjectDetection.from_pretrained(folders[kind]).eval()
    eight_bit = (pictures[0] * 255).round().to(torch.uint8)
    inputs = processor(images=eight_bit.movedim(-1, 0), text="red car. dog.", return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs)
    middle = float(outputs.logits.sigmoid().amax(dim=-1).median())
    how = dict(threshold=middle, text_threshold=0.25, target_sizes=[(50, 67)])
    (expected,) = processor.post_process_grounded_object_detection(outputs, inputs["input_ids"], **how)
    (found,) = models[kind].detect(pictures, "Red car, dog", middle, 0.25)
    assert QUERIES // 3 < len(found) == len(expected["scores"]) < QUERIES
    order = expected["scores"].argsort(descending=True, stable=True)
    torch.testing.assert_close(found.scores, expected["scores"][order], rtol=1e-4, atol=1e-5)
    edges = torch.tensor([67.0, 50.0, 67.0, 50.0])
    torch.testing.assert_close(found.boxes, expected["boxes"][order].clamp_min(0).minimum(edges), rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("kind", DETECTORS)
def test_thresholds_decide_what_counts(models, kind):
    pictures = noise(2)
    every = models[kind].detect(pictures, "old man with a hat", 0.0, 0.0)
    for found in every:
        assert found.boxes.shape == (QUERIES, 4) and found.boxes.dtype == found.scores.dtype == torch.float32
        assert found.boxes.device.type == "cpu" and (found.scores.diff() <= 0).all()
        assert (found.boxes >= 0).all() and (found.boxes <= torch.tensor([67, 50, 67, 50])).all()
        assert (found.boxes[:, 2:] >= found.boxes[:, :2]).all()
        # Everything passes a text threshold of 0, but neither marks of the tokenizer nor the full stop are words.
        assert set(found.labels) == {"old man with a hat"}
    middle = float(every[0].scores[4:6].mean())
    some = models[kind].detect(pictures, "old man with a hat", middle, 0.0)
    assert len(some[0]) == 5 and torch.equal(some[0].boxes, every[0].boxes[:5])
    nothing = models[kind].detect(pictures, "old man with a hat", 1.0, 0.0)
    assert [found.boxes.shape for found in nothing] == [(0, 4)] * 2
    assert [found.labels for found in nothing] == [()] * 2
    assert set(models[kind].detect(pictures, "dog", 0.0, 1.0)[0].labels) == {""}


@pytest.mark.parametrize("kind", DETECTORS)
@pytest.mark.parametrize("height, width", [(37, 91), (301, 65)])
def test_a_batch_is_as_one_by_one_at_odd_sizes(models, kind, height, width):
    pictures = noise(3, height, width)
    together = models[kind].detect(pictures, "cat, red car", 0.0, 0.25)
    again = models[kind].detect(pictures, "cat, red car", 0.0, 0.25)
    for place in range(3):
        assert torch.equal(together[place].boxes, again[place].boxes) and together[place].labels == again[place].labels
        assert same(models[kind].detect(pictures[place : place + 1], "cat, red car", 0.0, 0.25)[0], together[place])
    assert not same(together[0], together[1])


def test_more_pictures_than_fit_and_none(comfy_host, models, monkeypatch):
    pictures = noise(5)
    together = models["grounding-dino"].detect(pictures, "dog", 0.0, 0.25)
    two = comfy_host.module("nodes.host.networks").Batches(2)
    monkeypatch.setattr(models["grounding-dino"], "_together", two)
    apart = models["grounding-dino"].detect(pictures, "dog", 0.0, 0.25)
    assert len(apart) == 5 and all(map(same, apart, together))
    assert models["grounding-dino"].detect(pictures[:0], "dog", 0.0, 0.25) == []


def test_other_words_find_other_boxes(models):
    pictures = noise(1)
    cat, dog = (models["grounding-dino"].detect(pictures, word, 0.0, 0.25)[0] for word in ("cat", "dog"))
    assert not torch.allclose(cat.boxes, dog.boxes, atol=1e-2)


def test_a_phrase_that_is_too_long_is_refused(models):
    with pytest.raises(ValueError, match="has 303 tokens and the model reads 256"):
        models["grounding-dino"].detect(noise(1), "dog " * 300, 0.3, 0.25)


@pytest.mark.parametrize("kind", SEGMENTERS)
def test_masks_are_those_of_transformers_own_way(folders, models, kind):
    """Its documented way, on one picture and all boxes at once, against ours."""
    pictures = noise(1)
    family = "Sam" if kind == "sam" else "Sam2"
    processor = getattr(transformers, f"{family}Processor").from_pretrained(folders[kind])
    model = getattr(transformers, f"{family}Model").from_pretrained(folders[kind]).eval()
    eight_bit = (pictures[0] * 255).round().to(torch.uint8)
    inputs = processor(images=eight_bit.movedim(-1, 0), input_boxes=[BOXES], return_tensors="pt")
    sizes = [inputs.pop(name) for name in ("original_sizes", "reshaped_input_sizes") if name in inputs]
    sizes = sizes if kind == "sam" else sizes[:1]
    inputs["input_boxes"] = inputs["input_boxes"].float()
    with torch.no_grad():
        low = model(**inputs, multimask_output=False).pred_masks
    expected = processor.image_processor.post_process_masks(low, *sizes)[0][:, 0].float()
    (found,) = models[kind].segment(pictures, [torch.tensor(BOXES)])
    assert found.shape == (3, 50, 67) and found.dtype == torch.float32 and found.device.type == "cpu"
    assert set(found.unique().tolist()) == {0.0, 1.0}
    assert (found != expected).float().mean() < 1e-3


@pytest.mark.parametrize("kind", SEGMENTERS)
@pytest.mark.parametrize("height, width", [(50, 67), (301, 65)])
def test_each_picture_has_boxes_of_its_own(models, kind, height, width):
    pictures = noise(4, height, width)
    scale = torch.tensor([width / 67, height / 50] * 2)
    boxes = [torch.tensor(BOXES[:count]).view(-1, 4) * scale for count in (2, 0, 3, 1)]
    together = models[kind].segment(pictures, boxes)
    assert [tuple(masks.shape) for masks in together] == [(len(own), height, width) for own in boxes]
    assert all(map(torch.equal, together, models[kind].segment(pictures, boxes)))
    for place, masks in enumerate(together):
        (alone,) = models[kind].segment(pictures[place : place + 1], boxes[place : place + 1])
        assert not masks.numel() or (alone != masks).float().mean() < 1e-3
    assert not torch.equal(together[0][0], together[0][1]) and not torch.equal(together[0][0], together[2][0])


def test_many_boxes_pass_in_parts(models, module, monkeypatch):
    pictures, boxes = noise(1), [torch.tensor(BOXES).repeat(4, 1) + torch.arange(12)[:, None] / 12]
    (together,) = models["sam"].segment(pictures, boxes)
    monkeypatch.setattr(module, "MOST_BOXES", 5)
    (parts,) = models["sam"].segment(pictures, boxes)
    assert together.shape == (12, 50, 67) and (parts != together).float().mean() < 1e-3


def test_no_boxes_at_all(models):
    assert [tuple(m.shape) for m in models["sam"].segment(noise(2), [torch.zeros(0, 4)] * 2)] == [(0, 50, 67)] * 2
    with pytest.raises(ValueError, match="1 lists of boxes for 2 pictures"):
        models["sam"].segment(noise(2), [torch.zeros(0, 4)])


def test_alpha_is_dropped(models):
    four = noise(2, channels=4)
    pairs = [models["sam2"].segment(pictures, [torch.tensor(BOXES)] * 2) for pictures in (four, four[..., :3])]
    assert all(map(torch.equal, *pairs))
    first, second = (models["grounding-dino"].detect(x, "dog", 0.0, 0.25) for x in (four, four[..., :3]))
    assert all(torch.equal(a.boxes, b.boxes) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("kind", MAKERS)
def test_half_precision(module, folders, models, kind):
    """Float32 is what runs here; half can be asked for, and says nearly the same."""
    pictures = noise(2)
    if kind in DETECTORS:
        half = module.load_detector(folders[kind], torch.float16)
        found, expected = (m.detect(pictures, "dog", 0.0, 0.25)[0] for m in (half, models[kind]))
        assert found.boxes.dtype == found.scores.dtype == torch.float32
        assert (found.scores - expected.scores).abs().mean() < 0.02
    else:
        half = module.load_segmenter(folders[kind], torch.float16)
        found, expected = (m.segment(pictures, [torch.tensor(BOXES)] * 2)[0] for m in (half, models[kind]))
        assert found.dtype == torch.float32 and (found != expected).float().mean() < 0.1
    for model, dtype in ((half, torch.float16), (models[kind], torch.float32)):
        net = model._network.loaded()[0]
        assert {weight.dtype for weight in net.parameters()} == {dtype}
        assert {weight.device for weight in net.parameters()} == {model._network.device}


@pytest.mark.parametrize("kind", MAKERS)
def test_the_host_holds_the_model_and_can_free_it(models, kind):
    from comfy import model_management

    pictures = noise(1)
    use = (
        (lambda: models[kind].detect(pictures, "dog", 0.0, 0.25))
        if kind in DETECTORS
        else (lambda: models[kind].segment(pictures, [torch.tensor(BOXES)]))
    )
    use()
    patcher = models[kind]._network._patcher
    assert any(loaded.model is patcher for loaded in model_management.current_loaded_models)
    model_management.unload_all_models()
    assert not any(loaded.model is patcher for loaded in model_management.current_loaded_models)
    use()
