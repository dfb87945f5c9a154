"""The demo: its progress lines, its graphs, its sheet, and the whole of it in the real server."""

import io
import json
import os
from dataclasses import replace

import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import to_tensor

from devtools import demo
from devtools.client import _refusal
from devtools.progress import ProgressLine, clock
from devtools.sheet import contact_sheet, set_aside
from tests.graphs import REPO, drawn_quickly
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
    for model in demo.MODELS.values():
        prompt, saves = demo.txt2img(model, "m.safetensors")
        assert len(saves) == len(model.rows) and set(saves) < set(prompt)
        for graph in (prompt, demo.erasing(model)):
            linked = [value for node in graph.values() for value in node["inputs"].values() if isinstance(value, list)]
            assert all(value[0] in graph for value in linked)
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


@pytest.fixture
def run_demo(server, tmp_path, monkeypatch, capsys):
    """Run the demo of a model, for time with one picture a row and its workflow's own pictures hardly drawn; how often
    the judge sees a name in a row. few: for time with one object and the style, and half of the images to train on.

    Gives (before, after), each a function of a row's number and a name, and the same rows' pictures.
    """
    judge = Judge(REPO / "assets/demo/judge.safetensors")
    drawn, draw = [], demo.draw
    monkeypatch.setattr(demo, "OUTPUT", tmp_path)
    monkeypatch.setattr(demo, "PICTURES", 1)
    shipped = drawn_quickly(json.loads(demo.WORKFLOW.read_text(encoding="utf-8")))
    monkeypatch.setattr(demo, "WORKFLOW", tmp_path / "full.json")
    monkeypatch.setattr(demo, "draw", lambda *arguments: drawn.append(draw(*arguments)) or drawn[-1])

    def counted(rows):
        pictures = [torch.stack([to_tensor(picture.convert("RGB")) for picture in row]) for row in rows]
        return lambda row, name: [judge.names[i] for i in judge(pictures[row]).argmax(-1)].count(name), pictures

    def go(model, few=False):
        for node in shipped["nodes"] if few else ():
            if node["type"] == "MACE_ConceptImages":
                node["widgets_values"][0] //= 2
            if node["type"] == "MACE_Concepts":
                node["widgets_values"][0] = node["widgets_values"][0].splitlines()[0]
        demo.WORKFLOW.write_text(json.dumps(shipped), encoding="utf-8")
        demo.run(server, model)
        assert Image.open(tmp_path / "contact_sheet.png").width > 300
        (checkpoint,) = tmp_path.glob("*.safetensors")
        printed = capsys.readouterr().out
        assert str(checkpoint) in printed and "In your own ComfyUI" in printed
        return judge, *map(counted, drawn)

    return go


# What a row of the demo's sheet is of: erased ones, the erased style, and those that stay.
GONE, STYLED, STAY = ("dog", "dog", "dog", "airplane", "ship"), ("guitar",), ("hot dog", "wolf", "cat", "rose")
SHOWN = (*GONE, *STYLED, *STAY)


@pytest.mark.server
@pytest.mark.parametrize("few", [True, pytest.param(False, marks=pytest.mark.long)], ids=["few", "all"])
def test_the_whole_demo(run_demo, few):
    """Erased checkpoint and sheet are there, and the judge sees what the sheet is to show."""
    model = demo.MODELS["sd"]
    assert len(model.rows) == len(SHOWN)
    rows = (1, 5, 6) if few else range(len(SHOWN))
    shown = replace(model, rows=tuple(model.rows[row] for row in rows))
    judge, (before, pictures), (after, erased) = run_demo(shown, few)
    for place, row in enumerate(rows):
        if SHOWN[row] in STYLED:
            twemoji = judge.styles.index("Twemoji")
            styled = [(judge.style(drawn[place]).argmax(-1) == twemoji) for drawn in (pictures, erased)]
            assert styled[0].all() and not styled[1].any()
        else:
            seen = before(place, SHOWN[row]), after(place, SHOWN[row])
            assert seen == ((1, 1) if SHOWN[row] in STAY else (1, 0)), (row, seen)


@pytest.mark.server
@pytest.mark.long
def test_the_demo_of_a_transformer(run_demo, server):
    """Loaded, erased from by one node, saved, loaded again and drawn with, in the real server."""
    # Half of the rows, for time.
    model = replace(demo.MODELS["sd3"], rows=demo.MODELS["sd3"].rows[::2])
    assert [label for label, *_ in model.rows][:2] == ["a photo of the dog", "a photo of the airplane"]
    _, (before, _), (after, _) = run_demo(model)
    for row, name in enumerate(("dog", "airplane")):
        assert before(row, name) == 1 and after(row, name) == 0, (row, name)
    # The hot dog goes with the dog: in closed form its own words move too, and nothing is said to keep it.
    assert before(3, "cat") == after(3, "cat") == 1
    # No LoRA comes out, and what is connected there is passed over.
    loras = dict(loras=["erase", 1], filename_prefix="mace_loras/none", format="set (MACE)", moments=False)
    graph = demo.erasing(demo.MODELS["sd3"]) | {"loras": demo.node("MACE_SaveLoras", **loras)}
    outputs = server.client.queue(graph).outputs
    assert "No LoRA is trained for this model" in outputs["erase"]["text"][0] and "loras" not in outputs
