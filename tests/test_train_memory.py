"""Train Erasure LoRA where it is interrupted or memory is short: what is kept, how many train side by side."""

import re
from contextlib import contextmanager

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


def counting(host, monkeypatch, fits):
    """The sizes of the batches tried; fits(size, whether blocks are recomputed) says which are no out-of-memory."""
    module, training = host.module("mace.pipeline.material"), host.module("nodes.stages.trainer")
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
            raise torch.cuda.OutOfMemoryError("no memory")
        return losses(copy, batch, *rest)

    monkeypatch.setattr(module, "losses", limited)
    monkeypatch.setattr(training, "recomputed_blocks", noted)
    return tried


def test_one_group_anew_and_one_resumed(comfy_host, demo, parts, listed, store, monkeypatch):
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
    assert "3 concepts, 3 side by side, 3.0 GB beside the model, 5.0 h at most" in report(node)
    assert "3 LoRAs trained" in report(node) and "2 go on from step 2" in report(node)
    own = {entry.concept.target: entry for entry in node[0].loras}
    for one, other in zip((own["dog"], own["ship"]), parts[3].loras, strict=True):
        same(one, other, rtol=2e-2, atol=2e-4)


def test_one_concept_is_measured_and_the_plan_is_said(comfy_host, demo, parts, store, monkeypatch):
    tried = counting(comfy_host, monkeypatch, lambda size, saving: True)
    node = train(comfy_host, demo[1], parts[0], parts[2])
    assert tried[0] == 1 and tried[-3:] == [2, 2, 2]
    assert re.search(r"2 concepts, 2 side by side, \d+\.\d GB beside the model, \d+ (s|min|h) at most", report(node))


def test_out_of_memory_trains_fewer_side_by_side(comfy_host, demo, parts, store, monkeypatch):
    """A size that failed is not tried again in the run."""
    _, clip, _ = demo
    refined, _, shown, loras = parts
    tried = counting(comfy_host, monkeypatch, lambda size, saving: size == 1)
    node = train(comfy_host, clip, refined, shown)
    assert tried.count(2) == 1 and "2 side by side did not fit; 1 from there on" in report(node)
    same(node[0].loras[0], loras.loras[0], rtol=2e-2, atol=2e-4)


def test_blocks_are_recomputed_where_one_alone_does_not_fit(comfy_host, demo, parts, store, monkeypatch):
    _, clip, _ = demo
    refined, _, shown, loras = parts
    tried = counting(comfy_host, monkeypatch, lambda size, saving: saving)
    node = train(comfy_host, clip, refined, shown)
    assert "one concept does not fit without save_memory: it is on" in report(node)
    assert tried[0] == 1 and tried[-1] == 2
    same(node[0].loras[0], loras.loras[0], rtol=2e-2, atol=2e-4)


def test_out_of_memory_with_everything_saved_says_what_to_do(comfy_host, demo, parts, store, monkeypatch):
    counting(comfy_host, monkeypatch, lambda size, saving: False)
    with pytest.raises(RuntimeError, match="training .dog. alone, with save_memory on: use smaller images"):
        train(comfy_host, demo[1], parts[0], parts[2])
