"""Automatic settings are Table 10's."""

import json
import math

import pytest

from mace.concepts.concept import Concept
from mace.method.fuse import FuseWeights
from mace.method.loss import NORMS, SQUARED
from mace.method.refine import ALIKE, READING, RefineWeights
from mace.presets.presets import PAPER, PRESETS, PresetError, read_preset
from mace.presets.table10 import EXPLICIT_MU, LoraRow, auto_lora, auto_weights


def concepts(kind, count, first=()):
    names = [*first, *(f"name {i}" for i in range(count - len(first)))]
    return [Concept(name, "x", kind) for name in names]


@pytest.mark.parametrize("name, mu", [("airplane", 1000), ("Frog", 0.4), ("truck", 0.1), ("hot dog", 10)])
def test_one_object(name, mu):
    weights = auto_weights(concepts("object", 1, [name]))
    assert (weights.lambda1, weights.lambda3, weights.mu) == (0, 0, mu)


def test_several_objects_take_the_median():
    assert auto_weights(concepts("object", 3, ["airplane", "frog", "bird"])).mu == 10


@pytest.mark.parametrize("count, lambda3", [(1, 0.8), (5, 5), (10, 8), (100, 20), (1000, 20)])
def test_people(count, lambda3):
    weights = auto_weights(concepts("celebrity", count))
    assert (weights.lambda1, weights.lambda3, weights.mu) == (1e-4, pytest.approx(lambda3), 0)


def test_people_between_the_tables_entries():
    expected = 8 + (20 - 8) * math.log(3) / math.log(10)
    assert auto_weights(concepts("celebrity", 30)).lambda3 == pytest.approx(expected)


def test_styles_and_explicit():
    weights = auto_weights(concepts("style", 3))
    assert (weights.lambda1, weights.lambda3, weights.mu) == (1e-4, 8, 0)
    weights = auto_weights(concepts("explicit", 4))
    assert (weights.lambda1, weights.lambda3, weights.mu) == (7e-7, 0, EXPLICIT_MU)


def test_mixed():
    weights = auto_weights(concepts("object", 1, ["cat"]) + concepts("celebrity", 5) + concepts("explicit", 1))
    assert (weights.lambda1, weights.lambda3, weights.mu) == (1e-4, pytest.approx(5), 1000)


def test_empty():
    with pytest.raises(ValueError, match="no concepts"):
        auto_weights([])


def test_the_demo_models_weights_grow_with_the_list():
    """Up to ten concepts those of the recorded results; beyond, in proportion, as the concepts' own sums do."""
    demo = PRESETS["demo model (mace_demo)"]
    few = RefineWeights(lambda1=1e-4, mu=1e5, metric=READING)
    assert demo.refine(1) == demo.refine(10) == few
    many = demo.refine(100)
    assert many.lambda1 == pytest.approx(1e-3) and many.mu == pytest.approx(1e6) and many.metric == READING
    assert demo.fuse(1) == FuseWeights(lambda2=1e-4, mu=1e4)
    assert demo.fuse(100).lambda2 == pytest.approx(1e-2) and demo.fuse(100).mu == pytest.approx(1e5)


def test_what_is_offered_first_stays_first():
    demo = ["demo model (mace_demo)", "small SD3 (mace_demo_sd3)", "demo model, lists of any length"]
    assert list(PRESETS) == [PAPER, *demo, "paper, as released"]
    # As in the code that the published results came from.
    assert PRESETS[PAPER].end_of_text and not PRESETS[PAPER].lambda1_squared
    assert all(preset.found_on for name, preset in PRESETS.items() if name != PAPER)


def test_lambda1_grows_with_a_long_list_and_mu_does_not():
    assert [name for name in PRESETS if PRESETS[name].closed_form] == ["demo model, lists of any length"]
    lists = PRESETS["demo model, lists of any length"].refine
    for count, lambda1 in {1: 5e-3, 10: 5e-3, 100: 2e-2}.items():
        assert lists(count).lambda1 == pytest.approx(lambda1) and lists(count).mu == 1
    # Aliases count as their targets do.
    ten = [Concept(f"thing {n}", "sky", "object", tuple(f"alias {n} {k}" for k in range(9))) for n in range(10)]
    assert PRESETS["demo model, lists of any length"].weights(ten) == lists(100)


def preset_of(tmp_path, **entry):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"name": "mine", **entry}), encoding="utf-8")
    return read_preset(path)


def test_what_a_file_does_not_say_is_table_10s(tmp_path):
    name, preset = preset_of(tmp_path)
    assert (name, preset.refine, preset.fuse) == ("mine", None, None)
    assert preset.lora("explicit") == auto_lora("explicit") and preset.loss == SQUARED
    assert not preset.end_of_text and not preset.focus


def test_by_type_and_by_length(tmp_path):
    rows = {"style": {"rank": 2, "steps": 3, "learning_rate": 1e-3}, "*": {"rank": 1, "steps": 5, "learning_rate": 1}}
    _, preset = preset_of(tmp_path, lora=rows, refine={"lambda1": [2, 0.5, 4], "lambda3": 1}, focus=True, loss=NORMS)
    assert preset.lora("style") == LoraRow(2, 3, 1e-3) and preset.lora("object") == LoraRow(1, 5, 1.0)
    assert [preset.refine(count).lambda1 for count in (1, 4, 16)] == [2, 2, 4] and preset.refine(16).lambda3 == 1
    assert preset.focus and preset.loss == NORMS and preset.refine(1).metric == ALIKE


def test_how_a_weight_is_written_is_the_same_for_every_list(tmp_path):
    refine = {"lambda1": [2, 0.5, 4], "lambda3": [0, 1, 10], "mu": 1e5}
    _, preset = preset_of(tmp_path, refine=refine)
    assert preset.refine_forms == ("2.0 (n / 4)^0.5", "0.0", "100000.0")
    _, preset = preset_of(tmp_path, refine=refine, lambda1_squared=True)
    assert preset.refine_forms == ("4.0 (n / 4)^1", "0.0", "100000.0") and preset_of(tmp_path)[1].refine_forms is None
    assert preset.weights([Concept(name, "sky", "object") for name in "abcdefgh"]).lambda1 == pytest.approx(8)


DAMAGED = {
    "unknown entry": {"lambda1": 1},
    "unknown weight": {"refine": {"lambda2": 1}},
    "a word": {"refine": {"mu": "much"}},
    "negative": {"fuse": {"lambda2": -1}},
    "not finite": {"fuse": {"mu": float("inf")}},
    "another metric": {"refine": {"mu": 1, "metric": "cubits"}},
    "four numbers": {"refine": {"mu": [1, 2, 3, 4]}},
    "no usual type": {"lora": {"style": {"rank": 1, "steps": 1, "learning_rate": 1}}},
    "a list": {"lora": [1]},
    "another loss": {"loss": "none"},
    "hundreds of digits": {"refine": {"mu": 10**400}},
    "beyond nothing": {"fuse": {"mu": [1, 1, 0]}},
    "a word for yes": {"focus": "yes"},
    "half a rank": {"lora": {"*": {"rank": 1.5, "steps": 1, "learning_rate": 1}}},
    "a row that is none": {"lora": {"*": 3}},
}


@pytest.mark.parametrize("entry", DAMAGED.values(), ids=DAMAGED)
def test_a_file_that_cannot_be_read_is_named(tmp_path, entry):
    with pytest.raises(PresetError, match="mine.json cannot be read"):
        preset_of(tmp_path, **entry)


@pytest.mark.parametrize("text", ["", "[]", "[" * 10_000, '{"refine": {}}'])
def test_text_that_is_no_preset(tmp_path, text):
    (tmp_path / "mine.json").write_text(text, encoding="utf-8")
    with pytest.raises(PresetError, match="mine.json"):
        read_preset(tmp_path / "mine.json")
