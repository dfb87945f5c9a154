"""Experiments on MACE itself: what leaks, what each part does, prompts never seen, and the sampling of the pictures."""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from unittest.mock import patch

import torch

from benchmarks.erasure.bench import CLOSED_FORM, NAIVE, Bench
from benchmarks.erasure.methods import BASE, FUSED, REFINED, Subject
from benchmarks.erasure.questions import TEMPLATES, VARIED, asked
from benchmarks.erasure.records import Records, told
from benchmarks.erasure.tasks import TEN, Plan, examine, fill, groups, styled, summary

STEPS = (1, 5, 10, 25, 50)
# Settings of Train Erasure LoRA other than the preset's.
VARIANTS = {"all": {}, "without CFIS": dict(cfis=False), "without focus": dict(focus="no")}
VARIANTS |= {"concept's tokens only": dict(end_of_text="no"), "sum of norms": dict(loss="sum of norms (release)")}
# Without focus, A is drawn and trained; the release draws it from N(0, 1/rank^2).
START = "without focus, A drawn as peft does"
VARIANTS[START] = dict(focus="no")
CURVES = {f"keys, {n} steps": dict(projections="keys", steps=str(n)) for n in STEPS}
CURVES |= {f"values, {n} steps": dict(projections="values", steps=str(n)) for n in STEPS}
CURVES |= {f"keys and values, {n} steps": dict(steps=str(n)) for n in STEPS[:-1]}
# Settings of CFR Refine other than the preset's.
REFINEMENTS = {"lambda1 squared": dict(lambda1_form="as released (squared)")}
SAMPLERS = {"ddim": (4, 6, 8, 12, 20), "euler": (8, 20), "dpmpp_2m": (4, 6, 8, 12)}


def leak(bench: Bench, records: Records, plan: Plan) -> None:
    """Fig. 2b: the class's own tokens replaced by the final end-of-text's; how often does it still appear?"""
    for name in bench.words["synonyms"]:
        questions = asked([name], seeds=4)
        subject = Subject(bench, [name])

        def without(prompt: str, phrase: str = name):
            node = bench.host.run("MACE_ResidualPrompt", clip=bench.clip, prompt=prompt, phrase=phrase)
            return node[0][0][0][0]

        for method in (BASE, REFINED, FUSED):
            key = f"{name}/{method}"
            if key in records or not plan.wants(name):
                continue
            model, how = subject.model(method)
            answers = bench.examiner.ask(model, questions, encode=without, **how)
            records.add(key, erased=name, method=method, groups={"residual": told(questions, answers)}, seconds={})
            print(key, summary(records.cells[key]["groups"]), flush=True)


def ablations(bench: Bench, records: Records, plan: Plan) -> None:
    """Tables 4 and 5: ten concepts with parts of the method left out or changed; steps by closed form alone."""
    questions = groups(bench, TEN, share=4)
    questions["erased"] = asked(TEN)
    questions["style"] = styled(bench, TEN, 6)
    subject = Subject(bench, TEN, style=True)
    for method in (BASE, REFINED):
        fill(bench, records, subject, questions, Plan((method,)), "ten")
    for name in (*VARIANTS, *REFINEMENTS, *CURVES):
        ways = (CLOSED_FORM,) if name in CURVES else (CLOSED_FORM, NAIVE)
        new = [way for way in ways if f"{name}, {way}" not in records]
        if not new or not plan.wants(name):
            continue
        work = subject.work
        if name in REFINEMENTS:
            work = bench.prepare(TEN, True, **REFINEMENTS[name])
        with started_as_peft(bench) if name == START else nullcontext():
            bench.train(work, **{**VARIANTS, **CURVES}.get(name, {}))
        for way in new:
            cell = examine(bench, (bench.fuse(work, way), {}), questions)
            records.add(f"{name}, {way}", erased="ten", method=way, variant=name, **cell)
            print(name, way, summary(cell["groups"]), flush=True)


@contextmanager
def started_as_peft(bench: Bench) -> Iterator[None]:
    """LoRAs trained meanwhile start with A uniform in +- 1/sqrt(d). Their stores, which cannot know, are others."""
    kept, disk = bench.host.module("nodes.stages.trained")._store, bench.host.module("nodes.host.kept.lora_store")

    def init_pair(d_out: int, d: int, rank: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(d_out, rank), (2 * torch.rand(rank, d, generator=generator) - 1) * d**-0.5

    kept.clear()
    with (
        tempfile.TemporaryDirectory() as folder,
        patch.object(disk, "store", lambda: disk.LoraStore(Path(folder))),
        patch.object(bench.host.module("mace.method.train"), "init_pair", init_pair),
    ):
        yield
    kept.clear()


def unseen(bench: Bench, records: Records, plan: Plan) -> None:
    """Prompts of other forms than those of training, for three classes alone, and what stays on them."""
    others = [name for name in bench.words["concepts"] if name not in bench.words["synonyms"]][::12]
    for name in ("dog", "airplane", "ship"):
        questions = {template: asked([name], (template,), seeds=4) for template in VARIED}
        questions |= {f"others: {template}": asked(others, (template,)) for template in VARIED}
        fill(bench, records, Subject(bench, [name]), questions, Plan((FUSED,), plan.only), name)


def sampling(bench: Bench, records: Records, plan: Plan) -> None:
    """How few steps, and of which sampler, keep the base model's accuracy on all its things."""
    questions = asked(bench.words["concepts"], TEMPLATES[:1])
    before = bench.studio.sampler, bench.studio.steps
    for sampler, counts in SAMPLERS.items():
        for steps in counts:
            key = f"{sampler}, {steps} steps"
            if key in records or not plan.wants(key):
                continue
            bench.studio.sampler, bench.studio.steps = sampler, steps
            start = time.perf_counter()
            answers = bench.examiner.ask(bench.model, questions)
            seconds = time.perf_counter() - start
            found = {"all": told(questions, answers)}
            records.add(key, sampler=sampler, steps=steps, groups=found, seconds={"pictures": round(seconds, 2)})
            print(key, summary(found), f"{len(questions) / seconds:.1f} pictures a second", flush=True)
    bench.studio.sampler, bench.studio.steps = before


STUDIES = {"leak": leak, "ablations": ablations, "unseen": unseen, "sampling": sampling}
