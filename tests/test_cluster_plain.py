"""What is sent to workers as plain values, and comes back as it was."""

import json
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest

from headless.cluster.plain import concept_from, files_from, files_to, model_key, training_from, training_to
from headless.cluster.stages import Clustered
from headless.cluster.worker import Worker
from headless.models import Files
from tests.test_refine_node import concepts

pytestmark = pytest.mark.host


@pytest.mark.parametrize("cfis", [True, False])
def test_training_options(comfy_host, cfis):
    module = comfy_host.module
    schedule, preset = (
        module("mace.method.schedule"),
        module("nodes.host.preset_files").find_preset("demo model (mace_demo)"),
    )
    timesteps = schedule.Cfis(100, 300, 0.2) if cfis else schedule.Uniform()
    made = module("mace.pipeline.train_options").TrainOptions(
        rank=3, seed=7, focus=True, timesteps=timesteps, side_by_side=2, by_type=preset.lora
    )
    sent = json.loads(json.dumps(training_to(made, {"style", "object"})))
    found = training_from(comfy_host, sent)
    for kind in ("style", "object"):
        assert found.settings(kind) == made.settings(kind) and found.record(kind, 8) == made.record(kind, 8)
    assert (found.side_by_side, found.save_memory, found.again) == (2, False, False)


def test_concepts(comfy_host):
    concept = comfy_host.module("mace.concepts.concept").Concept("dog", "sky", "object", ("hound",), ("one {}",))
    for sent in (asdict(concept), json.loads(json.dumps(asdict(concept)))):
        found = concept_from(comfy_host, sent)
        assert found == concept and hash(found) == hash(concept)


def test_a_models_files_and_their_key(tmp_path):
    """The key is of what is in the files, and of how they are opened, not of their names."""
    for name, text in (("a", "weights"), ("b", "weights"), ("c", "others"), ("v", "vae")):
        (tmp_path / name).write_text(text)

    def files(model, clip=(), skip=1, vae=None) -> Files:
        return Files(tmp_path / model, tuple(tmp_path / own for own in clip), "flux", skip, vae and tmp_path / vae)

    every = [files("a"), files("c"), files("a", ["c"]), files("a", skip=2), files("a", vae="v"), files("a", ["v"])]
    for own in every:
        assert files_from(json.loads(json.dumps(files_to(own)))) == own
    assert len({model_key(own) for own in every}) == len(every) and model_key(files("b")) == model_key(files("a"))


def test_a_closed_form_has_an_estimate(comfy_host, demo, monkeypatch):
    """Workers share the prompts; captions are read by the command alone, as the worker is not asked about them."""
    module = comfy_host.module
    stage, files = module("nodes.stages.erasing"), module("nodes.host.preset_files")
    settled = b'{"name": "a", "refine": {"mu": 2, "lambda1": 1}, "closed_form": true}'
    _, alone = module("mace.presets.presets").preset_of_text(settled, "a.json")
    monkeypatch.setattr(files, "PRESETS", {**files.PRESETS, "alone": alone})
    monkeypatch.setattr(module("nodes.stages.captions"), "seconds_a_prompt", lambda *_: (1.0, 0.01))
    monkeypatch.setattr(module("nodes.stages.estimate"), "seconds_a_prompt", lambda *_: (1.0, 0.01))
    monkeypatch.setattr(module("mace.pipeline.prior"), "_last_general", module("mace.pipeline.store").LastResult())
    loaded, worker = SimpleNamespace(model=demo[0], clip=demo[1], vae=None), Worker({})
    worker._host, worker._loaded = comfy_host, loaded
    options = SimpleNamespace(unit_loras=8, unit_moments=1)
    cluster = Clustered(SimpleNamespace(host=comfy_host, options=options), worker, None, "", 5)
    listed = concepts(comfy_host, "a lighthouse\na windmill\na tram")
    settings = dict(width=64, height=64, seed=0, strengths="", find_aliases=False, preset="alone", gentle_strong=0.0)
    plan = stage.how_done(demo[0], listed, stage.Wanted(alone, 64, 64, 0))
    seconds, (first, *rest) = cluster.estimate(loaded, listed, settings, plan)
    prompts, captions = 2 * sum(len(own.readings) for own in listed), plan.captions.count
    assert {name: own for name, own in seconds.items() if own} == {"reading": captions + prompts / 3}
    assert first.startswith("3 concepts on 3 workers, ") and "copy" not in "".join(rest)
    seconds, _ = cluster.estimate(loaded, listed, settings, replace(plan, captions=None))
    assert seconds["reading"] == prompts / 3
