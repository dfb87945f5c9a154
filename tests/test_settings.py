"""Automatic settings are Table 10's."""

import math

import pytest

from mace.concepts.concept import Concept
from mace.method.fuse import FuseWeights
from mace.method.refine import READING, RefineWeights
from mace.presets.presets import DEMO, PRESETS
from mace.presets.table10 import EXPLICIT_MU, auto_weights


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
    demo = PRESETS[DEMO]
    few = RefineWeights(lambda1=1e-4, mu=1e5, metric=READING)
    assert demo.refine(1) == demo.refine(10) == few
    many = demo.refine(100)
    assert many.lambda1 == pytest.approx(1e-3) and many.mu == pytest.approx(1e6) and many.metric == READING
    assert demo.fuse(1) == FuseWeights(lambda2=1e-4, mu=1e4)
    assert demo.fuse(100).lambda2 == pytest.approx(1e-2) and demo.fuse(100).mu == pytest.approx(1e5)
