"""The measuring for the estimate where memory is short: of fewer pictures, or of none."""

import pytest
import torch

from tests.stages import short_of_memory

pytestmark = pytest.mark.host


@pytest.mark.parametrize(("fits", "tried"), [(2, [2, 2]), (1, [2, 1, 1, 1, 1]), (0, [2, 1, 1])])
def test_memory_that_runs_out_while_measuring_stops_nothing(comfy_host, demo, monkeypatch, fits, tried):
    """Two pictures, else one; where not even one fits an empty device, the estimate says what is not in it."""
    stage = comfy_host.module("nodes.stages.estimate")
    monkeypatch.setattr(stage, "_measured", comfy_host.module("mace.pipeline.store").LastResult())
    (model, asked), clip = short_of_memory(demo[0], fits), demo[1]
    text = comfy_host.module("nodes.host.text").TextEncoder(clip)
    with torch.inference_mode():
        speed = stage.measure_speed(model, clip, text, ["a dog", "a ship", "a cat"], 64, 64)
    assert asked == tried and (speed.row > 0) == (fits > 0)
    parts = {"other words": (2, 4), "reading": (3, 0), "training": (0, 0)}
    said = stage.estimated(speed, parts, model, clip, 2, trains=False)
    left_out = [line for line in said.lines if "for other words are not in this time: memory ran out" in line]
    assert bool(left_out) == (fits == 0) and said.seconds["reading"] == 3 * speed.text
