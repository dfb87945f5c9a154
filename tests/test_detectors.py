"""GroundingDINO by its own package: its true layout with random weights, the whole forward on the CPU."""

import re
import sys
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.detector_models import bert_folder, dino_net

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def parts(comfy_host, tmp_path_factory):
    """(folder of BERT, weights of GroundingDINO, the package's own model with them)."""
    folder = bert_folder(tmp_path_factory.mktemp("dino") / "bert-base-uncased")
    net = dino_net(folder, pytest.MonkeyPatch())
    return folder, {key: value.clone() for key, value in net.state_dict().items()}, net


@pytest.fixture(scope="module")
def load(comfy_host, parts, tmp_path_factory):
    """A detector that looks at small pictures, of a file with these weights."""
    module = comfy_host.module("nodes.host.detectors.dino")

    def make(weights, name="tiny.pth"):
        path = tmp_path_factory.mktemp("weights") / name
        save_file(weights, path) if path.suffix == ".safetensors" else torch.save(weights, path)
        made = module.DinoDetector(path, parts[0])
        made.shortest, made.longest = 96, 160
        return made

    return make


@pytest.fixture(scope="module")
def detector(load, parts):
    return load({"model": {f"module.{key}": value for key, value in parts[1].items()}})


def pictures(count, height=64, width=64, channels=3, seed=0):
    return torch.rand(count, height, width, channels, generator=torch.Generator().manual_seed(seed))


def detect(detector, shown, phrase="hot dog. cat", box=0.0, text=0.5):
    with torch.inference_mode():
        return detector.detect(shown, phrase, box, text)


def same(one, other, boxes=1e-3, scores=1e-5):
    """boxes: by how many pixels they may differ."""
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a.boxes, b.boxes, rtol=0, atol=boxes)
        torch.testing.assert_close(a.scores, b.scores, rtol=0, atol=scores)
        assert a.labels == b.labels


@pytest.mark.parametrize("size", [(64, 64), (37, 53), (9, 90)])
def test_many_are_found_inside_the_picture_by_falling_score(detector, size):
    height, width = size
    found = detect(detector, pictures(2, height, width))
    assert len(found) == 2
    for seen in found:
        assert seen.boxes.dtype == seen.scores.dtype == torch.float32 and seen.boxes.device.type == "cpu"
        assert (
            10 < len(seen.scores) <= 30
            and seen.boxes.shape == (len(seen.scores), 4)
            and len(seen.labels) == len(seen.scores)
        )
        assert seen.scores.diff().max() <= 0 and 0 <= seen.scores.min() and seen.scores.max() <= 1
        assert seen.boxes.min() >= 0 and seen.boxes[:, ::2].max() <= width and seen.boxes[:, 1::2].max() <= height
        assert (seen.boxes[:, 2:] > seen.boxes[:, :2]).all()


class Beside(torch.nn.Module):
    """A model that is shown another picture too, so that the package itself gives thin ones their margin."""

    def __init__(self, net, side):
        super().__init__()
        self.net, self.tokenizer, self.other = net, net.tokenizer, torch.zeros(3, side, side)

    def forward(self, images, captions):
        from groundingdino.util.misc import nested_tensor_from_tensor_list

        output = self.net(nested_tensor_from_tensor_list([images[0], self.other]), captions=captions * 2)
        return {key: value[:1] for key, value in output.items()}


def assert_as_the_package(module, detector, net, height, width):
    """Ours against the package's own model, built by itself of its own settings, and its own `predict`."""
    # It draws with supervision, which is not installed.
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "supervision", mock.MagicMock())
        from groundingdino.util.inference import predict

    shown = pictures(1, height, width)
    # Pictures are scaled alike here, so that what differs is what is made of them.
    pixels = module.prepared(shown, detector.shortest, detector.longest)[0]
    # Its reading of BERT does not run with today's transformers; ours has a test of its own.
    net.bert = detector._network.module.net.bert
    rows = []
    said = predict(Beside(net, module.LEAST_SIDE), pixels, "hot dog. cat", 0.3, 0.5, "cpu")
    for box, score, label in zip(*said, strict=True):
        x, y, w, h = box.tolist()
        left, top = max(0.0, (x - w / 2) * width), max(0.0, (y - h / 2) * height)
        right, bottom = min(width, (x + w / 2) * width), min(height, (y + h / 2) * height)
        if right > left and bottom > top:
            # It takes tokens that stand for no word into the label.
            label = " ".join(re.sub(r"\[CLS\]|\[SEP\]", "", label).split())
            rows.append(([left, top, right, bottom], float(score), label))
    rows.sort(key=lambda row: -row[1])
    boxes, scores, labels = zip(*rows, strict=True)
    expected = SimpleNamespace(boxes=torch.tensor(boxes), scores=torch.tensor(scores), labels=labels)
    (found,) = detect(detector, shown, box=0.3)
    assert len(found) == len(rows) > 10 and len(set(labels)) > 2
    same([found], [expected])
    # The sides are told apart: boxes with the two taken for one another would be others.
    swapped = expected.boxes * torch.tensor([height / width, width / height] * 2)
    assert (found.boxes - swapped).abs().max() > 1


@pytest.mark.parametrize("height, width", [(37, 53), (64, 96), (96, 64), (9, 90), (90, 9)])
def test_boxes_are_those_of_the_packages_own_way(comfy_host, detector, parts, height, width):
    assert_as_the_package(comfy_host.module("nodes.host.detectors.dino"), detector, parts[2], height, width)


def test_thresholds(detector):
    shown = pictures(1)
    (everything,) = detect(detector, shown)
    middle = float(everything.scores[len(everything.scores) // 2])
    (half,) = detect(detector, shown, box=middle)
    count = int((everything.scores > middle).sum())
    assert 0 < count < len(everything.scores) and torch.equal(half.boxes, everything.boxes[:count])
    (none,) = detect(detector, shown, box=1.0)
    assert none.boxes.shape == (0, 4) and none.labels == ()
    said = {word for label in everything.labels for word in label.split()}
    assert said and said <= {"hot", "dog", "cat"}
    assert set(detect(detector, shown, text=1.0)[0].labels) == {""}


def test_phrases_of_several_words_and_pieces(detector):
    (one,) = detect(detector, pictures(1), "Airplane", text=0.0)
    assert set(one.labels) == {"airplane"}
    assert not torch.equal(one.scores, detect(detector, pictures(1), "a tall face")[0].scores)
    for phrase in ("", " . ", "dog " * 300):
        with pytest.raises(ValueError, match="tokens; GroundingDINO reads"):
            detect(detector, pictures(1), phrase)


def test_batches_transparency_and_repeats_change_nothing(comfy_host, detector):
    shown = pictures(5, channels=4)
    found = detect(detector, shown)
    assert 5 > comfy_host.module("nodes.host.detectors.dino").MOST_TOGETHER
    again = detect(detector, shown)
    assert all(torch.equal(a.boxes, b.boxes) and a.labels == b.labels for a, b in zip(found, again, strict=True))
    same(detect(detector, shown[4:, ..., :3]), found[4:])
    assert not torch.equal(found[0].boxes, found[1].boxes)


def test_it_is_loaded_as_the_hosts_own_models_are(detector):
    from comfy import model_management

    model_management.unload_all_models()
    detect(detector, pictures(1))
    held = [entry.model for entry in model_management.current_loaded_models]
    assert detector._network._patcher in held


@pytest.mark.parametrize("half", [False, True])
def test_files_of_every_kind_say_the_same(load, parts, detector, half):
    """safetensors without the doubles of shared weights, and in half precision."""
    # Its scores lie further apart (0.0015) than rounding moves them, so that their order stays.
    shown = pictures(1, 37, 53)
    (expected,) = detect(detector, shown)
    single = {key: value for key, value in parts[1].items() if not key.startswith("transformer.decoder.bbox_embed")}
    if half:
        single["feat_map.weight"] = parts[1]["feat_map.weight"].half()
    other = load(single, "tiny.safetensors")
    assert {value.dtype for value in other._network.module.parameters()} == {torch.float32}
    (found,) = detect(other, shown)
    # Rounding that one matrix moved boxes by 0.0003 pixels and scores by 0.0002.
    same([found], [expected], *((2e-3, 1e-3) if half else (0, 0)))


def test_each_thing_of_a_caption_is_read_by_itself(comfy_host, parts, detector):
    """Ours against BERT itself with the same mask, and against a caption of one thing alone."""
    from transformers import BertModel

    net = detector._network.module.net
    words = net.tokenizer("hot dog. cat.", return_tensors="pt")["input_ids"]
    mask = torch.eye(7, dtype=torch.bool)
    mask[1:4, 1:4] = mask[4:6, 4:6] = True
    places = torch.tensor([[0, 0, 1, 2, 0, 1, 0]])
    with torch.inference_mode():
        ours = net.bert(words, mask[None], places)["last_hidden_state"]
        bert = BertModel.from_pretrained(parts[0]).float().eval()
        closed = torch.zeros(1, 1, 7, 7).masked_fill(~mask, torch.finfo(torch.float32).min)
        theirs = bert(input_ids=words, attention_mask=closed, position_ids=places).last_hidden_state
        alone = net.bert(words[:, 4:6], torch.ones(1, 2, 2, dtype=torch.bool), places[:, 4:6])["last_hidden_state"]
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(ours[:, 4:6], alone)


def test_pictures_are_prepared_as_the_package_does(comfy_host):
    import groundingdino.datasets.transforms as theirs
    from PIL import Image

    module = comfy_host.module("nodes.host.detectors.dino")
    usual = theirs.Compose(
        [
            theirs.RandomResize([800], max_size=1333),
            theirs.ToTensor(),
            theirs.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    for height, width in ((64, 64), (512, 768), (100, 400)):
        smooth = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
        smooth = torch.nn.functional.interpolate(smooth, (height, width), mode="bilinear")
        eight = (smooth * 255).round() / 255
        expected = usual(Image.fromarray(np.asarray((eight[0].movedim(0, -1) * 255).round().byte())), None)[0]
        ours = module.prepared(eight.movedim(1, -1), 800, 1333)[0]
        assert all(abs(a - b) <= 1 for a, b in zip(ours.shape, expected.shape, strict=True))
        if ours.shape == expected.shape:
            assert float((ours - expected).abs().max()) < 0.05


def test_backbones_are_told_from_the_weights(comfy_host, parts):
    module = comfy_host.module("nodes.host.detectors.dino")
    found = module.settings_of(parts[1], "tiny.pth")
    assert found["backbone"] == "swin_T_224_1k" and found["num_queries"] == 30
    assert (found["enc_layers"], found["dec_layers"], found["dim_feedforward"]) == (1, 1, 64)
    large = {
        **parts[1],
        "backbone.0.patch_embed.proj.weight": torch.empty(128, 3, 4, 4),
        "backbone.0.layers.0.blocks.0.attn.relative_position_bias_table": torch.empty(529, 4),
    }
    assert module.settings_of(large, "b.pth")["backbone"] == "swin_B_384_22k"
    with pytest.raises(ValueError, match="other.pth is not GroundingDINO with a SwinT or SwinB"):
        module.settings_of({"weight": torch.ones(1)}, "other.pth")


@pytest.mark.long
def test_swin_b(comfy_host, load, parts):
    """The larger backbone at its true width, windows and depth."""
    module = comfy_host.module("nodes.host.detectors.dino")
    net = dino_net(parts[0], pytest.MonkeyPatch(), backbone="swin_B_384_22k")
    assert module.settings_of(net.state_dict(), "swinb.pth")["backbone"] == "swin_B_384_22k"
    made = load(net.state_dict(), "swinb.pth")
    patches, first = (made._network.module.net.backbone[0].get_submodule(key) for key in ("patch_embed", "layers.0"))
    assert patches.proj.out_channels == 128 and first.blocks[0].attn.window_size == (12, 12)
    assert_as_the_package(module, made, net, 40, 56)


def test_damaged_files(comfy_host, tmp_path):
    module = comfy_host.module("nodes.host.detectors.weights")

    def fill(**weights):
        module.fill_network(torch.nn.Linear(2, 3), weights, "x.pth", "a layer")

    fill(weight=torch.ones(3, 2), bias=torch.ones(3), more=torch.ones(1))
    with pytest.raises(ValueError, match="x.pth holds values that are not finite .* bias"):
        fill(weight=torch.ones(3, 2), bias=torch.full((3,), float("nan")))
    with pytest.raises(ValueError, match="x.pth lacks weights of a layer: bias and 0 others"):
        fill(weight=torch.ones(3, 2))
    with pytest.raises(ValueError, match="x.pth does not fit a layer: size mismatch for bias"):
        fill(weight=torch.ones(3, 2), bias=torch.ones(4))
    (tmp_path / "text.pth").write_text("nothing")
    torch.save({"run": print}, tmp_path / "code.pth")
    torch.save([torch.ones(1)], tmp_path / "list.pth")
    for name in ("text", "code"):
        with pytest.raises(ValueError, match=f"{name}.pth cannot be read as weights"):
            module.read_weights(tmp_path / f"{name}.pth")
    with pytest.raises(ValueError, match="list.pth holds no weights by name"):
        module.read_weights(tmp_path / "list.pth")
