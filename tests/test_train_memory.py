"""Train Erasure LoRA where it is interrupted or memory is short: what is kept, how many train side by side."""

from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from types import SimpleNamespace

import pytest
import torch

from tests.stages import images, report, train
from tests.test_refine_node import concepts, weights_hash
from tests.trained import same

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("few_templates")]
pytest_plugins = ["tests.trained"]


def test_an_interrupt_keeps_what_is_finished_and_leaves_the_host_as_it_was(comfy_host, demo, parts, store, monkeypatch):
    from comfy import model_management

    model, clip, _ = demo
    refined, _, shown, loras = parts
    before = weights_hash(model)
    picture = comfy_host.sample(refined, clip, "a photo of the dog", steps=2)
    module = comfy_host.module("nodes.host.progress")
    seen = []

    def report_and_interrupt(self, names, step, losses, steps):
        seen.append((names, step))
        if names == ["ship"] and step == 2:
            model_management.interrupt_current_processing()

    with monkeypatch.context() as patched, pytest.raises(model_management.InterruptProcessingException):
        patched.setattr(module.LossProgress, "report", report_and_interrupt)
        train(comfy_host, clip, refined, shown, side_by_side="1")
    assert not model_management.processing_interrupted() and not model_management.in_training
    assert seen[-1] == (["ship"], 2) and len(store) == 1
    assert weights_hash(model) == before
    assert torch.equal(comfy_host.sample(refined, clip, "a photo of the dog", steps=2), picture)
    resumed = train(comfy_host, clip, refined, shown, side_by_side="1")
    assert "1 LoRAs trained, 1 of 2 kept" in report(resumed) and "1 go on from step 2" in report(resumed)
    assert len(resumed[0].loras[1].losses) == 3
    same(resumed[0].loras[1], loras.loras[1], rtol=2e-2, atol=2e-4)


def test_an_interrupt_in_the_last_step_loses_none(comfy_host, demo, parts, store, monkeypatch, said):
    """What is left is to read it: nothing is measured, and no step is made again."""
    from comfy import model_management

    module = comfy_host.module("nodes.host.progress")

    def interrupted(self, names, step, losses, steps):
        if step == steps:
            raise model_management.InterruptProcessingException

    with monkeypatch.context() as patched, pytest.raises(model_management.InterruptProcessingException):
        patched.setattr(module.LossProgress, "report", interrupted)
        train(comfy_host, demo[1], parts[0], parts[2])
    said.clear()
    resumed = train(comfy_host, demo[1], parts[0], parts[2])
    assert "2 LoRAs trained" in report(resumed) and "2 go on from step 3" in report(resumed) and said == []
    for one, other in zip(resumed[0].loras, parts[3].loras, strict=True):
        same(one, other, rtol=2e-2, atol=2e-4)


NO_MEMORY = torch.cuda.OutOfMemoryError("no memory")
# Apple's, which the host does not take for one.
APPLES = RuntimeError("MPS backend out of memory (MPS allocated: 18.02 GB, max allowed: 18.13 GB)")


def counting(host, monkeypatch, fits, error=NO_MEMORY):
    """The sizes of the batches tried; fits(size, whether blocks are recomputed) says which are no out-of-memory."""
    module, training = (host.module(name) for name in ("mace.pipeline.material", "nodes.stages.training_memory"))
    tried, recomputed, losses, blocks = [], [False], module.losses, training.recomputed_blocks

    @contextmanager
    def noted(network):
        recomputed[0] = True
        with blocks(network):
            yield
        recomputed[0] = False

    def limited(copy, batch, *rest):
        tried.append(len(batch.latents))
        if not fits(len(batch.latents), recomputed[0]):
            raise error
        return losses(copy, batch, *rest)

    monkeypatch.setattr(module, "losses", limited)
    monkeypatch.setattr(training, "recomputed_blocks", noted)
    return tried


def test_one_group_anew_and_one_resumed(comfy_host, demo, parts, listed, store, monkeypatch, said):
    """What was stopped in the middle trains beside what is new: other steps, other numbers of concepts.

    The plan is said with side_by_side written too, and its time is of the steps that are left.
    """
    from comfy import model_management

    _, clip, _ = demo
    module = comfy_host.module("nodes.host.progress")
    report_step = module.LossProgress.report

    def stop(self, names, step, losses, steps):
        report_step(self, names, step, losses, steps)
        if step == 2:
            model_management.interrupt_current_processing()

    with monkeypatch.context() as patched, pytest.raises(model_management.InterruptProcessingException):
        patched.setattr(module.LossProgress, "report", stop)
        train(comfy_host, clip, parts[0], parts[2], side_by_side="2")
    longer = concepts(comfy_host, "cat", more=listed)
    # A gigabyte and an hour a step.
    measured = comfy_host.module("nodes.host.model.memory").Measured(10**9, 3600.0)
    monkeypatch.setattr(comfy_host.module("nodes.stages.trainer"), "measure", lambda device, step: measured)
    node = train(comfy_host, clip, parts[0], images(comfy_host, demo, longer)[0], side_by_side="3")
    plan = "3 concepts, 3 side by side, 3.0 GB beside the model, "
    assert plan + "1.7 h to 5.0 h" in said and plan + "about " in report(node)
    assert "3 LoRAs trained" in report(node) and "2 go on from step 2" in report(node)
    own = {entry.concept.target: entry for entry in node[0].loras}
    for one, other in zip((own["dog"], own["ship"]), parts[3].loras, strict=True):
        same(one, other, rtol=2e-2, atol=2e-4)


def test_one_concept_is_measured_and_the_plan_is_said(comfy_host, demo, parts, store, monkeypatch, said):
    """Before the first step, as a range; and with the time they take together when steps of it are known. A step takes
    100 s, of one and of two."""
    from comfy import model_management

    tried = counting(comfy_host, monkeypatch, lambda size, saving: said.append(size) or True)
    clock = SimpleNamespace(perf_counter=count(step=100).__next__)
    monkeypatch.setattr(comfy_host.module("nodes.stages.training_plan"), "time", clock)
    loaded, load = [], model_management.load_models_gpu
    monkeypatch.setattr(
        model_management, "load_models_gpu", lambda *a, **k: loaded.append(k.get("memory_required")) or load(*a, **k)
    )
    trainer, planned = comfy_host.module("nodes.stages.trainer"), []
    measure = trainer.measure
    monkeypatch.setattr(
        trainer, "measure", lambda *a: planned.append(replace(measure(*a), seconds=100.0)) or planned[-1]
    )
    node = train(comfy_host, demo[1], parts[0], parts[2])
    assert tried == [1, 1, 2, 2, 2]
    (each,) = (found.memory for found in planned)
    # The LoRA itself and the two moments that AdamW keeps of it.
    each += 3 * sum(part.nbytes for pair in parts[3].loras[0].lora.values() for part in pair)
    plan = f"2 concepts, 2 side by side, {2 * each / 1e6:.0f} MB beside the model, "
    said = said[said.index("measuring what one concept takes") :]
    assert said[1:3] == [1, 1] and said[3] == plan + "5 min to 10 min"
    assert said[4] == 2 and plan + "about 5 min" in said[5:]
    assert report(node).count(plan) == 1 and plan + "about 5 min" in report(node)
    assert loaded[-1] == 2 * each > 0


def test_as_many_train_side_by_side_as_fit(comfy_host, demo, parts, store, monkeypatch, said):
    """Two gigabytes are free, and one takes one: the second would have to share what is left for others."""
    from comfy import model_management

    measured = comfy_host.module("nodes.host.model.memory").Measured(10**9, 600.0)
    monkeypatch.setattr(comfy_host.module("nodes.stages.trainer"), "measure", lambda device, step: measured)
    monkeypatch.setattr(model_management, "get_free_memory", lambda *a, **k: 2 * 10**9)
    tried = counting(comfy_host, monkeypatch, lambda size, saving: True)
    train(comfy_host, demo[1], parts[0], parts[2])
    assert tried == [1] * 6 and "2 concepts, 1 side by side, 1.0 GB beside the model, about 60 min" in said


@pytest.mark.parametrize(("free", "fits"), [(10**9, "2 side by side"), (10**8, "1 side by side")])
def test_what_is_measured_is_held_against_what_is_free(comfy_host, demo, parts, store, monkeypatch, said, free, fits):
    """Where steps spill into the computer's memory no error comes: blocks are recomputed before. Then one takes less,
    and where that is too much too, it is said."""
    from comfy import model_management

    measured = comfy_host.module("nodes.host.model.memory").Measured
    recomputed = []
    tried = counting(comfy_host, monkeypatch, lambda size, saving: recomputed.append(saving) or True)
    sizes = iter([measured(10**9, 1.0), measured(3 * 10**8, 2.0)])
    monkeypatch.setattr(
        comfy_host.module("nodes.stages.trainer"), "measure", lambda device, step: step() or next(sizes)
    )
    monkeypatch.setattr(model_management, "get_free_memory", lambda *a, **k: free)
    monkeypatch.setattr(model_management, "EXTRA_RESERVED_VRAM", 0)
    told = report(train(comfy_host, demo[1], parts[0], parts[2], steps="1"))
    assert tried[:2] == [1, 1] and recomputed[0] is False and all(recomputed[1:])
    assert "one concept does not fit without save_memory: it is on" in told and fits in told
    assert ("one concept takes more memory than is free: steps may take long" in told) == (free < 3 * 10**8)


def test_the_copy_stays_where_all_texts_are_kept(comfy_host, demo, parts, store, monkeypatch):
    """It makes way for the text encoder only where a prompt has to be encoded."""
    aside, trainer = [], comfy_host.module("nodes.stages.trainer")
    monkeypatch.setattr(trainer, "step_aside", lambda copy, needed: aside.append(needed))
    comfy_host.module("nodes.host.text")._embeddings.clear()
    train(comfy_host, demo[1], parts[0], parts[2], side_by_side="1", steps="1")
    # Measuring encodes the first one's.
    assert aside == [demo[1].patcher.model_size()] * 2
    train(comfy_host, demo[1], parts[0], parts[2], side_by_side="1", steps="1", again=True)
    assert len(aside) == 2


def fails_at(monkeypatch, module, name, calls):
    """A function of a module runs out of memory in these calls of it, counted from 1."""
    number, function = count(1), getattr(module, name)

    def limited(*given, **more):
        if next(number) in calls:
            raise APPLES
        return function(*given, **more)

    monkeypatch.setattr(module, name, limited)


@pytest.mark.parametrize("call", [1, 3], ids=["while measuring", "in the group"])
def test_where_encoding_does_not_fit_beside_the_copy_it_makes_way(comfy_host, demo, parts, store, monkeypatch, call):
    """As a whole, and once; how many train side by side stays."""
    training, aside = comfy_host.module("nodes.stages.training_memory"), []
    monkeypatch.setattr(training, "step_aside", lambda copy, needed: aside.append(needed))
    fails_at(monkeypatch, comfy_host.module("nodes.stages.trainer"), "material", {call})
    node = train(comfy_host, demo[1], parts[0], parts[2])
    assert aside == [float("inf")] and "fit" not in report(node) and "2 side by side" in report(node)
    for one, other in zip(node[0].loras, parts[3].loras, strict=True):
        same(one, other, rtol=2e-2, atol=2e-4)


@pytest.mark.parametrize(
    ("name", "calls", "said"),
    [
        ("material", {1, 2}, "encoding the prompts of dog: close other .* Load CLIP"),
        ("material", {3, 4}, "encoding the prompts of dog, ship: close other"),
        ("initial", {1, 2}, "training 'dog' alone, with save_memory on: use smaller images, or close"),
        ("load", {1, 2}, "training 'dog' alone, with save_memory on: use smaller images, or close"),
    ],
)
def test_out_of_memory_outside_the_network_says_what_to_do(
    comfy_host, demo, parts, store, monkeypatch, name, calls, said
):
    fails_at(monkeypatch, comfy_host.module("nodes.stages.trainer"), name, calls)
    with pytest.raises(RuntimeError, match=f"out of memory while {said}"):
        train(comfy_host, demo[1], parts[0], parts[2])


def test_out_of_memory_trains_fewer_side_by_side(comfy_host, demo, parts, store, monkeypatch, said):
    """A size that failed is not tried again in the run, and the plan is said anew, with the time of what is left."""
    _, clip, _ = demo
    refined, _, shown, loras = parts
    measured = comfy_host.module("nodes.host.model.memory").Measured(10**8, 600.0)
    monkeypatch.setattr(comfy_host.module("nodes.stages.trainer"), "measure", lambda device, step: measured)
    tried = counting(comfy_host, monkeypatch, lambda size, saving: size == 1, APPLES)
    node = train(comfy_host, clip, refined, shown)
    assert tried.count(2) == 1 and "2 side by side did not fit; 1 from there on" in report(node)
    plans = [line for line in said if line.startswith("2 concepts, ")]
    assert "2 side by side, 0.2 GB beside the model, 30 min to 60 min" in plans[0]
    assert "1 side by side, 0.1 GB beside the model, about 60 min" in plans[1]
    assert "concepts, 2 side by side" not in report(node) and report(node).count("concepts, 1 side by side") == 1
    same(node[0].loras[0], loras.loras[0], rtol=2e-2, atol=2e-4)


def test_out_of_memory_in_the_middle_makes_no_step_again(comfy_host, demo, parts, store, monkeypatch, said):
    """Two side by side fail in their third step: each alone goes on from the second."""
    _, clip, _ = demo
    refined, _, shown, loras = parts
    together = count(1)
    tried = counting(comfy_host, monkeypatch, lambda size, saving: size == 1 or next(together) != 3)
    trainer = comfy_host.module("nodes.stages.trainer")
    measure = trainer.measure
    monkeypatch.setattr(trainer, "measure", lambda *given: replace(measure(*given), seconds=600.0))
    node = train(comfy_host, clip, refined, shown)
    first, last = (line for line in said if "beside the model" in line)
    assert "30 min to 60 min" in first and "about 20 min" in last
    assert tried == [1, 1, 2, 2, 2, 1, 1] and "2 side by side did not fit; 1 from there on" in report(node)
    for one, other in zip(node[0].loras, loras.loras, strict=True):
        assert len(one.losses) == 3
        same(one, other, rtol=2e-2, atol=2e-4)


def test_states_that_are_gone_from_the_disk_are_gone_on_from(comfy_host, demo, parts, store, tmp_path, monkeypatch):
    """A full disk took them while a group that was read from them did not fit: their steps are not made again."""
    from comfy import model_management

    _, clip, _ = demo

    def stop(self, names, step, losses, steps):
        if step == 2:
            raise model_management.InterruptProcessingException

    with monkeypatch.context() as patched, pytest.raises(model_management.InterruptProcessingException):
        patched.setattr(comfy_host.module("nodes.host.progress").LossProgress, "report", stop)
        train(comfy_host, clip, parts[0], parts[2])

    def fits(size, saving):
        if size == 2:
            for path in (tmp_path / "loras").glob("*.state.*"):
                path.unlink()
        return size == 1

    tried = counting(comfy_host, monkeypatch, fits)
    assert "2 go on from step 2" in report(train(comfy_host, clip, parts[0], parts[2]))
    assert tried == [1, 1, 2, 1, 1]


def test_blocks_are_recomputed_where_one_alone_does_not_fit(comfy_host, demo, parts, store, monkeypatch):
    _, clip, _ = demo
    refined, _, shown, loras = parts
    tried = counting(comfy_host, monkeypatch, lambda size, saving: saving, APPLES)
    node = train(comfy_host, clip, refined, shown)
    assert "one concept does not fit without save_memory: it is on" in report(node)
    assert tried[0] == 1 and tried[-1] == 2
    same(node[0].loras[0], loras.loras[0], rtol=2e-2, atol=2e-4)


def test_out_of_memory_with_everything_saved_says_what_to_do(comfy_host, demo, parts, store, monkeypatch):
    counting(comfy_host, monkeypatch, lambda size, saving: False, APPLES)
    with pytest.raises(RuntimeError, match="training .dog. alone, with save_memory on: use smaller images"):
        train(comfy_host, demo[1], parts[0], parts[2])
