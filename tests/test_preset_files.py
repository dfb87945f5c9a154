"""Presets as files: saved by a node, found in two folders, offered by name, and odd files passed over."""

import json
import logging
from pathlib import Path

import pytest

from mace.presets.presets import PAPER, PRESETS, PresetError, preset_of_text
from mace.presets.writing import lora_rows, preset_text
from tests.test_preset_of_concepts import listed, refined

pytestmark = pytest.mark.host

FOUND = dict(name="mine", found_on="a test, one object")


@pytest.fixture
def save(comfy_host):
    """The node; what it wrote goes after the test."""
    written = []

    def run(prefix="mace_presets/mine", **given):
        (said,) = comfy_host.run("MACE_SavePreset", **{**FOUND, **given}, filename_prefix=prefix).ui.as_dict()["text"]
        if not said.startswith("saved before"):
            written.append(Path(said.splitlines()[0]))
        return said

    yield run
    for path in written:
        path.unlink()


def offered(host, node, name):
    schema = host.node_classes[node].define_schema()
    return next(given.options for given in schema.inputs if given.id == name)


def test_what_was_saved_is_offered_and_used(comfy_host, demo, save):
    said = save(mu=7, lambda1="1e-3, 1, 10", lambda3=0, lora="style = 2, 3, 1e-3\n* = 1, 5, 1e-2", focus=True)
    assert "output/mace_presets/mine_00001_.json" in said
    for node, name in (
        ("MACE_Concepts", "settings"),
        ("MACE_EraseConcepts", "preset"),
        ("MACE_TrainErasureLora", "preset"),
    ):
        assert "mine" in offered(comfy_host, node, name)
    chosen = listed(comfy_host, "dog -> sky", settings="mine")
    weights = refined(comfy_host, demo, chosen)[1].weights
    assert (weights.lambda1, weights.lambda3, weights.mu) == (1e-3, 0, 7)
    found = comfy_host.module("nodes.host.preset_files").find_preset("mine")
    assert found.refine(100).lambda1 == pytest.approx(1e-2) and found.focus and found.end_of_text
    assert (found.lora("style").steps, found.lora("object").steps, found.fuse) == (3, 5, None)


@pytest.mark.parametrize("chosen, given", [(True, {}), (False, {"end_of_text": False})])
def test_end_of_text_is_the_papers_and_always_written(comfy_host, save, chosen, given):
    said = save(**given)
    assert json.loads(Path(said.splitlines()[0]).read_text())["end_of_text"] is chosen
    assert comfy_host.module("nodes.host.preset_files").find_preset("mine").end_of_text is chosen
    inputs = comfy_host.node_classes["MACE_SavePreset"].define_schema().inputs
    (shown,) = (one for one in inputs if one.id == "end_of_text")
    assert shown.default is PRESETS[PAPER].end_of_text


def test_a_presets_own_lambda1_may_count_twice(comfy_host, demo, save):
    save(lambda1=1e-2, lambda3=0, mu=7, lambda1_form="as released (squared)")
    chosen = listed(comfy_host, "dog -> sky", settings="mine")
    for given, lambda1 in ((dict(), 1e-4), (dict(lambda1_form="paper"), 1e-2), (dict(lambda1="0.5"), 0.5)):
        assert refined(comfy_host, demo, chosen, **given)[1].weights.lambda1 == pytest.approx(lambda1)


def test_the_fusions_weights_know_where_they_pull(comfy_host, save):
    fused = dict(lambda2="1e-2, 1, 1", fuse_lambda3=0, fuse_mu=3)
    for name, pull, wanted in (("mine", "prior too (refined weights)", "all refined"), ("own", None, "refined")):
        said = save(**fused, name=name, **({"pull": pull} if pull else {}))
        weights = comfy_host.module("nodes.host.preset_files").find_preset(name).fuse(10)
        assert (weights.lambda2, weights.mu, weights.pull) == (pytest.approx(0.1), 3, wanted)
        # What is usual is left out, so that an earlier version reads it too.
        assert ("pull" in Path(said.splitlines()[0]).read_text()) is bool(pull)


def test_nothing_is_overwritten(save):
    first = save(mu=1, lambda1=0, lambda3=0)
    assert save(mu=1, lambda1=0, lambda3=0) == f"saved before: {first.splitlines()[0]}"
    with pytest.raises(ValueError, match="there is a preset 'mine' already"):
        save(mu=2, lambda1=0, lambda3=0)
    with pytest.raises(ValueError, match=r"there is a preset 'paper \(Table 10\)' already"):
        save(name=PAPER)
    assert "mine_00002_.json" in save(name="another")


def test_names_of_files_stay_inside(comfy_host, save):
    with pytest.raises(ValueError, match="outside the output folder"):
        save(prefix="../mine")
    assert "outside the output folder" in comfy_host.validate("MACE_SavePreset", filename_prefix="../mine")


@pytest.mark.parametrize(
    "given, message",
    [
        (dict(mu="5"), "refine: lambda1 is auto beside numbers"),
        (dict(fuse_mu=5), "fusion: lambda2 is auto beside numbers"),
        (dict(pull="prior too (refined weights)"), "fusion: pull is chosen and the weights are auto"),
        (dict(mu="x", lambda1=0, lambda3=0), "mu: 'x' is neither auto nor a number"),
        (dict(mu="1, 2", lambda1=0, lambda3=0), "mu: '1, 2' is neither a number nor number, power, n"),
        (dict(mu="1, 99, 1", lambda1=0, lambda3=0), "cannot be read: it.refine.mu"),
        (dict(mu_measures="as the model reads"), "Table 10's weights measure in embeddings"),
        (dict(lora="style = 1, 2, 3"), r"lora: there is no row for all other types"),
        (dict(lora="cats = 1, 2, 3"), "lora: line 1: 'cats = 1, 2, 3' does not begin with a type"),
        (dict(lora="* = 1, x, 3"), "lora: line 1: .* rank, steps and learning rate"),
        (dict(lora="* = 0, 2, 3"), "cannot be read: it.lora"),
        (dict(name=" "), "write both"),
        (dict(found_on=""), "write both"),
        (dict(name="dog\ud83d"), "half of a character"),
        (dict(name="x" * 101), "cannot be read: it.name"),
    ],
)
def test_what_no_preset_may_hold(save, given, message):
    with pytest.raises(ValueError, match=message):
        save(**given)


def test_odd_files_are_passed_over_with_a_line(comfy_host, caplog):
    folder = comfy_host.base / "models/mace_presets"
    folder.mkdir(exist_ok=True)
    given = {
        "damaged.json": "{",
        "deep.json": "[" * 100_000,
        "taken.json": json.dumps({"name": PAPER, "found_on": "x"}),
        "foreign.json": json.dumps({"name": "x", "steps": 3}),
        "good.json": json.dumps({"name": "theirs", "found_on": "x", "refine": {"mu": 2}}),
        "later.json": json.dumps({"name": "theirs", "found_on": "y", "refine": {"mu": 3}}),
    }
    try:
        for name, text in given.items():
            (folder / name).write_text(text, encoding="utf-8")
        (folder / "itself.json").symlink_to("itself.json")
        with caplog.at_level(logging.WARNING):
            found = comfy_host.module("nodes.host.preset_files").presets()
        assert found["theirs"].refine(1).mu == 2 and set(found) == {*PRESETS, "theirs"}
        said = "\n".join(record.getMessage() for record in caplog.records)
        for name in ("damaged", "deep", "taken", "foreign", "later"):
            assert f"MACE: the preset '{name}.json' is passed over" in said
    finally:
        for name in (*given, "itself.json"):
            (folder / name).unlink(missing_ok=True)


def test_a_preset_that_changes_runs_again(comfy_host):
    folder = comfy_host.base / "models/mace_presets"
    folder.mkdir(exist_ok=True)
    path = folder / "changing.json"
    node = comfy_host.node_classes["MACE_Concepts"]
    try:
        path.write_text(json.dumps({"name": "changing", "found_on": "x"}), encoding="utf-8")
        first = node.fingerprint_inputs(settings="changing")
        assert node.fingerprint_inputs(settings="changing") == first
        path.write_text(json.dumps({"name": "changing", "found_on": "another"}), encoding="utf-8")
        assert node.fingerprint_inputs(settings="changing") != first
        assert node.fingerprint_inputs(settings=PAPER) == node.fingerprint_inputs()
    finally:
        path.unlink()


def test_the_text_is_what_is_read():
    rows = lora_rows("style = 2, 3, 1e-3\n* = 1, 5, 1")
    text = preset_text("mine", "a test", {"lora": rows, "refine": {"lambda1": (1e-4, 1, 10), "mu": 3}, "loss": None})
    name, preset = preset_of_text(text.encode(), "mine")
    assert name == "mine" and preset.refine(20).lambda1 == pytest.approx(2e-4) and preset.lora("style").rank == 2
    with pytest.raises(PresetError, match="it.focus"):
        preset_text("mine", "a test", {"focus": "yes"})
