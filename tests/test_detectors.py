"""GroundingDINO and SAM by their own packages: true layouts with random weights, the whole forward on the CPU."""

import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.detector_models import bert_folder, dino_weights, sam_weights

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def parts(comfy_host, tmp_path_factory):
    """(folder of BERT, weights of GroundingDINO)."""
    folder = bert_folder(tmp_path_factory.mktemp("dino") / "bert-base-uncased")
    patch = pytest.MonkeyPatch()
    return folder, dino_weights(folder, patch)


@pytest.fixture(scope="module")
def load(comfy_host, parts, tmp_path_factory):
    """A detector that looks at small pictures, of a file with these weights."""
    module = comfy_host.module("nodes.detectors.dino")

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


def same(one, other):
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a.boxes, b.boxes, rtol=1e-3, atol=1e-2)
        torch.testing.assert_close(a.scores, b.scores, rtol=1e-3, atol=1e-4)


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
    assert 5 > comfy_host.module("nodes.detectors.dino").MOST_TOGETHER
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


def test_files_of_every_kind_say_the_same(load, parts, detector):
    """safetensors without the doubles of shared weights, and in half precision."""
    expected = detect(detector, pictures(1))
    single = {key: value for key, value in parts[1].items() if not key.startswith("transformer.decoder.bbox_embed")}
    single["feat_map.weight"] = parts[1]["feat_map.weight"].half()
    other = load(single, "tiny.safetensors")
    assert {value.dtype for value in other._network.module.parameters()} == {torch.float32}
    assert len(detect(other, pictures(1))[0].scores) == len(expected[0].scores)


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

    module = comfy_host.module("nodes.detectors.dino")
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
    module = comfy_host.module("nodes.detectors.dino")
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


def test_damaged_files(comfy_host, tmp_path):
    module = comfy_host.module("nodes.detectors.weights")

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


@pytest.fixture(scope="module")
def sam_file(comfy_host, tmp_path_factory):
    path = tmp_path_factory.mktemp("sam") / "vit_b.pth"
    torch.save(sam_weights(), path)
    return path


@pytest.fixture(scope="module")
def segmenter(comfy_host, sam_file):
    return comfy_host.module("nodes.detectors.sam").SamSegmenter(sam_file)


def some_boxes(count, height=64, width=64):
    corners = torch.rand(count, 2, 2, generator=torch.Generator().manual_seed(count)) * torch.tensor([width, height])
    return torch.cat([corners.amin(1), corners.amax(1) + 1], dim=1)


def segment(segmenter, shown, boxes):
    with torch.inference_mode():
        return segmenter.segment(shown, boxes)


def test_a_mask_a_box(segmenter):
    """No box, one, and more than fit into one batch; more pictures than are looked at together."""
    shown = pictures(4, 40, 61, channels=4)
    counts = (0, 1, 20, 3)
    masks = segment(segmenter, shown, [some_boxes(count, 40, 61) for count in counts])
    assert [tuple(mask.shape) for mask in masks] == [(count, 40, 61) for count in counts]
    assert {value for mask in masks for value in mask.unique().tolist()} == {0.0, 1.0}
    assert all(mask.dtype == torch.float32 and mask.device.type == "cpu" for mask in masks)
    again = segment(segmenter, shown[2:3, ..., :3], [some_boxes(20, 40, 61)])[0]
    assert float((again != masks[2]).float().mean()) < 1e-3
    assert [len(mask) for mask in segment(segmenter, shown[:2], [torch.zeros(0, 4)] * 2)] == [0, 0]


def test_masks_are_those_of_the_packages_own_predictor(segmenter):
    from segment_anything import SamPredictor

    shown, boxes = pictures(1, 256, 256).mul(255).round() / 255, some_boxes(5, 256, 256)
    ours = segment(segmenter, shown, [boxes])[0]
    predictor = SamPredictor(segmenter._network.module.net)
    with torch.inference_mode():
        predictor.set_image((shown[0] * 255).round().byte().numpy())
        scaled = predictor.transform.apply_boxes_torch(boxes, (256, 256))
        theirs = predictor.predict_torch(None, None, boxes=scaled, multimask_output=False)[0][:, 0]
    assert float((ours != theirs.float()).float().mean()) < 1e-4


def test_the_true_grid(comfy_host, tmp_path):
    """1024 x 1024 as published, where the other tests have 256 x 256."""
    torch.save(sam_weights(1024, 1, ()), tmp_path / "large.pth")
    made = comfy_host.module("nodes.detectors.sam").SamSegmenter(tmp_path / "large.pth")
    assert made._network.module.net.image_encoder.img_size == 1024
    assert segment(made, pictures(1, 64, 48), [some_boxes(2, 64, 48)])[0].shape == (2, 64, 48)


@pytest.mark.parametrize(
    "name, width, depth, heads", [("vit_b", 768, 12, 12), ("vit_l", 1024, 24, 16), ("vit_h", 1280, 32, 16)]
)
def test_sizes_are_told_from_the_weights(comfy_host, name, width, depth, heads):
    from segment_anything.build_sam import sam_model_registry

    with torch.device("meta"):
        state = sam_model_registry[name]().state_dict()
    found = comfy_host.module("nodes.detectors.sam").encoder_settings(state, "x.pth")
    step = depth // 4
    assert found == {
        "img_size": 1024,
        "embed_dim": width,
        "depth": depth,
        "num_heads": heads,
        "global_attn_indexes": [step - 1, 2 * step - 1, 3 * step - 1, 4 * step - 1],
    }


def test_files_that_are_not_sam(comfy_host, sam_file, tmp_path):
    make = comfy_host.module("nodes.detectors.sam").SamSegmenter
    torch.save({"model": {"image_encoder.trunk.pos_embed": torch.ones(1)}}, tmp_path / "sam2.pth")
    with pytest.raises(ValueError, match="sam2.pth is not SAM's vit_b, vit_l or vit_h"):
        make(tmp_path / "sam2.pth")
    state = torch.load(sam_file, weights_only=True)
    torch.save({**state, "mask_decoder.hf_token.weight": torch.ones(1, 256)}, tmp_path / "hq.pth")
    with pytest.raises(ValueError, match="hq.pth holds more than SAM"):
        make(tmp_path / "hq.pth")


def test_less_memory_means_smaller_batches(comfy_host):
    run = comfy_host.module("nodes.networks").in_batches
    tried = []

    def at_most(limit):
        def work(part):
            tried.append(len(part))
            if len(part) > limit:
                raise torch.cuda.OutOfMemoryError("no memory")
            return part.tolist()

        return work

    assert run(torch.arange(5), 4, at_most(1)) == [0, 1, 2, 3, 4] and tried == [4, 2, 1, 1, 1, 1, 1]
    with pytest.raises(torch.cuda.OutOfMemoryError):
        run(torch.arange(2), 4, at_most(0))


def test_an_interrupt_ends_the_work(comfy_host, segmenter):
    from comfy import model_management

    model_management.interrupt_current_processing()
    with pytest.raises(model_management.InterruptProcessingException):
        segment(segmenter, pictures(1), [some_boxes(1)])


@pytest.mark.parametrize("package", ["groundingdino", "segment_anything", "timm"])
def test_a_missing_package_is_named(comfy_host, monkeypatch, package):
    tools = comfy_host.module("nodes.detectors.tools")
    monkeypatch.setitem(sys.modules, package, None)
    option = "--no-deps " if package != "timm" else ""
    named = {"groundingdino": "groundingdino-py", "segment_anything": "segment-anything", "timm": "timm"}[package]
    for make in (tools.detector_of, tools.segmenter_of):
        with pytest.raises(
            ValueError, match=f"GroundingDINO . SAM lacks packages: run .* install {option}{named}, and"
        ):
            make("GroundingDINO + SAM", "auto")


def test_missing_files_say_what_goes_where(comfy_host, monkeypatch, tmp_path):
    tools = comfy_host.module("nodes.detectors.tools")
    monkeypatch.setattr(comfy_host.folder_paths, "models_dir", str(tmp_path))
    empty = {
        kind: ([str(tmp_path / kind)], set()) for kind in ("grounding-dino", "groundingdino", "sams", "text_encoders")
    }
    monkeypatch.setattr(comfy_host.folder_paths, "folder_names_and_paths", empty)
    with pytest.raises(ValueError, match="there is none: put groundingdino_swint_ogc.pth .* models/grounding-dino"):
        tools.detector_of("GroundingDINO + SAM", "auto")
    with pytest.raises(ValueError, match="'b.pth' is not there any more: put sam_vit_b_01ec64.pth"):
        tools.segmenter_of("GroundingDINO + SAM", "b.pth")
    assert tools.segmenter_of("GroundingDINO + SAM", "none: fill the boxes") is None
    (tmp_path / "groundingdino").mkdir()
    (tmp_path / "groundingdino" / "swint.safetensors").write_bytes(b"")
    assert tools.detector_names("GroundingDINO + SAM") == ["auto", "swint.safetensors"]
    with pytest.raises(ValueError, match="put its config.json, model.safetensors"):
        tools.detector_of("GroundingDINO + SAM", "auto")
    (tmp_path / "text_encoders/bert-base-uncased").mkdir(parents=True)
    (tmp_path / "text_encoders/bert-base-uncased/config.json").write_text("{}")
    with pytest.raises(
        ValueError, match="bert-base-uncased lacks model.safetensors or .*, tokenizer.json or vocab.txt"
    ):
        tools.detector_of("GroundingDINO + SAM", "auto")
    (tmp_path / "sams/sam2").mkdir(parents=True)
    (tmp_path / "sams/sam2/config.json").write_text('{"model_type": "sam2"}')
    (tmp_path / "sams/text").mkdir()
    (tmp_path / "sams/text/config.json").write_text('{"model_type": "bert"}')
    assert tools.segmenter_names("transformers") == ["auto", "none: fill the boxes", "sam2"]
