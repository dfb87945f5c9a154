"""Which file auto stands for, in folders that other packs use too."""

import pytest

pytestmark = pytest.mark.host


@pytest.fixture
def place(comfy_host, monkeypatch, tmp_path):
    """Puts empty files into models/."""
    monkeypatch.setattr(comfy_host.folder_paths, "models_dir", str(tmp_path))
    kinds = {kind: ([str(tmp_path / kind)], set()) for kind in ("grounding-dino", "groundingdino", "sams")}
    monkeypatch.setattr(comfy_host.folder_paths, "folder_names_and_paths", kinds)

    def put(*names):
        for name in names:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).touch()

    return put


@pytest.mark.parametrize(
    "names, expected",
    [
        (("mobile_sam.pt", "sam_hq_vit_b.pth", "sam_vit_h_4b8939.pth"), "sam_vit_h_4b8939.pth"),
        (("Sam_vit_l.safetensors", "aaa.pth"), "Sam_vit_l.safetensors"),
        (("mine.pth", "sam_hq_vit_b.pth"), "mine.pth"),
    ],
)
def test_auto_takes_the_published_segmenter(comfy_host, monkeypatch, place, names, expected):
    tools = comfy_host.module("nodes.host.detectors.tools")
    monkeypatch.setattr(comfy_host.module("nodes.host.detectors.sam"), "SamSegmenter", lambda path: path.name)
    place(*(f"sams/{name}" for name in names))
    assert tools.segmenter_of("GroundingDINO + SAM", "auto") == expected
    assert tools.segmenter_of("GroundingDINO + SAM", names[0]) == names[0]


@pytest.mark.parametrize(
    "names, expected",
    [
        (("best.pth", "groundingdino_swint_ogc.pth"), "groundingdino_swint_ogc.pth"),
        (("best.pth",), "best.pth"),
    ],
)
def test_auto_takes_the_published_detector(comfy_host, monkeypatch, place, names, expected):
    tools = comfy_host.module("nodes.host.detectors.tools")
    monkeypatch.setattr(tools, "bert_folder", lambda: None)
    monkeypatch.setattr(comfy_host.module("nodes.host.detectors.dino"), "DinoDetector", lambda path, bert: path.name)
    place(*(f"groundingdino/{name}" for name in names))
    assert tools.detector_of("GroundingDINO + SAM", "auto") == expected
