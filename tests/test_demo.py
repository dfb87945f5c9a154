"""The demo: its progress lines, its graphs, its sheet, and the whole of it in the real server."""

import io
import os

import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import to_tensor

from devtools import demo
from devtools.client import _refusal
from devtools.progress import ProgressLine, clock
from devtools.sheet import contact_sheet, set_aside
from tests.graphs import REPO
from tests.judge import Judge


def test_progress_lines_without_a_terminal():
    stream = io.StringIO()
    with ProgressLine(stream, every=0.0) as line:
        line("Train", None, None)
        line("Train", 1, 4)
        line("Train", 4, 4)
        line("Flies by", None, None)
    first, second, third = stream.getvalue().splitlines()
    assert first == "Train  0:00 elapsed" and third == "Train  4/4  0:00 elapsed"
    assert second.startswith("Train  1/4  0:00 elapsed") and second.endswith("left")


def test_progress_is_redrawn_on_a_terminal():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    with ProgressLine(stream) as line:
        line("A long stage", 1, 2)
        line("B", None, None)
    assert stream.getvalue().startswith("\rA long stage  1/2") and stream.getvalue().endswith("\n")


def test_clock():
    assert [clock(seconds) for seconds in (0, 59.6, 61, 3725)] == ["0:00", "1:00", "1:01", "1:02:05"]


def test_a_refusal_names_the_node():
    prompt = {"3": {"class_type": "Concepts", "inputs": {}, "_meta": {"title": "My concepts"}}}
    errors = {"3": {"errors": [{"message": "Bad", "details": "line 2"}], "class_type": "Concepts"}}
    assert _refusal(prompt, {"error": {"message": "x"}, "node_errors": errors}) == "My concepts (node 3): Bad: line 2"
    assert _refusal({}, {"error": {"message": "Prompt has no outputs", "details": ""}}) == "Prompt has no outputs"


def test_the_demo_draws_every_row_and_finds_the_checkpoint():
    prompt, saves = demo.txt2img("m.safetensors")
    assert len(saves) == len(demo.ROWS) and set(saves) < set(prompt)
    linked = [value for node in prompt.values() for value in node["inputs"].values() if isinstance(value, list)]
    assert all(value[0] in prompt for value in linked)
    reference = {"filename": "e_00001_.safetensors", "subfolder": "checkpoints/mine", "type": "output"}
    assert demo.saved_checkpoint({"1": {"images": []}, "2": {"checkpoints": [reference]}}) == reference
    assert demo.loader_name(reference) == os.path.join("mine", "e_00001_.safetensors")


def test_the_sheet_and_the_one_before(tmp_path):
    pictures = [Image.new("RGB", (64, 64), color) for color in ("red", "blue")]
    sheet = contact_sheet("title", ("before", "after"), [("a row", pictures, pictures), ("more", pictures, pictures)])
    colors = {color for _, color in sheet.getcolors(1 << 20)}
    assert {(255, 0, 0), (0, 0, 255)} < colors
    path = tmp_path / "sheet.png"
    assert set_aside(path) is None
    for name in ("sheet_001.png", "sheet_002.png"):
        path.write_text("x")
        assert set_aside(path) == tmp_path / name and not path.exists()


@pytest.mark.server
def test_the_whole_demo(server, tmp_path, monkeypatch, capsys):
    """Erased checkpoint and sheet are there, and the judge sees what the sheet is to show."""
    drawn, draw = [], demo.draw
    monkeypatch.setattr(demo, "OUTPUT", tmp_path)
    # Fewer pictures a row, for time.
    monkeypatch.setattr(demo, "PICTURES", 2)
    monkeypatch.setattr(demo, "draw", lambda *arguments: drawn.append(draw(*arguments)) or drawn[-1])
    demo.run(server)
    assert Image.open(tmp_path / "contact_sheet.png").width > 500
    (checkpoint,) = tmp_path.glob("*.safetensors")
    printed = capsys.readouterr().out
    assert str(checkpoint) in printed and "In your own ComfyUI" in printed
    judge = Judge(REPO / "assets/demo/judge.safetensors")
    before, after = ([torch.stack([to_tensor(p.convert("RGB")) for p in row]) for row in rows] for rows in drawn)

    def count(pictures, name):
        return [judge.names[i] for i in judge(pictures).argmax(-1)].count(name)

    for row, name in enumerate(("dog", "dog", "dog", "airplane", "ship")):
        assert count(before[row], name) == 2 and count(after[row], name) == 0, (row, name)
    twemoji = judge.styles.index("Twemoji")
    styled = [(judge.style(rows[5]).argmax(-1) == twemoji) for rows in (before, after)]
    assert styled[0].all() and not styled[1].any()
    for row, name in enumerate(("hot dog", "wolf", "cat", "rose"), start=6):
        assert count(before[row], name) == count(after[row], name) == 2, (row, name)
