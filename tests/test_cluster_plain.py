"""What is sent to workers as plain values, and comes back as it was."""

import json
from dataclasses import asdict

import pytest

from headless.cluster.plain import concept_from, files_from, files_to, model_key, training_from, training_to
from headless.models import Files

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
