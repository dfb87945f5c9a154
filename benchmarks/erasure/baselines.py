"""The baselines by their nodes, on the demo model.

Published settings throughout, but for the learning rates and numbers of steps of the methods that train, which are
made for Stable Diffusion: the rates were searched on the demo model (docs/search.md).
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

from benchmarks.erasure.bench import Bench, Work

SIZE = dict(width=64, height=64, seed=0)
ESD = dict(steps=100, eta=1.0, start_guidance=3.0, sampling_steps=8, batch=1, prompt="{}", **SIZE)
AC = dict(train="cross-attention (to_k, to_v)", steps=100, batch=8, images=64, sampling_steps=8, guidance=6.0, **SIZE)
FMN = dict(train="cross-attention", end_of_text=False, steps=35, batch=1, seed=0)
SPEED = dict(threshold=0.1, retain_scale=1.0)
# By the settings that are published for 10 to 100 celebrities.
SPEED_LISTS = "SPEED as for lists"
OCE = dict(erase_scale="auto", preserve_scale="auto")
RATES = {"ESD-x": "1e-4", "ESD-u": "1e-5", "AC": "1e-4", "FMN": "1e-4"}
# OCE by the weights that are published for as many people, in which what is preserved counts; and in the form that its
# objective asks for.
OCE_PEOPLE, OCE_DERIVED = "OCE as for people", "OCE as for people, derived"
# Captions of OCE: those of MACE's prior, as it steps aside for a list.
CAPTIONS = "stepped_aside.txt"
METHODS = {"ESD-x": "ESD-x (cross-attention)", "ESD-u": "ESD-u (all but cross-attention)"}

# (MODEL, what to draw with besides: see `Studio.draw`)
Made = tuple[object, Mapping]


def run(bench: Bench, node: str, **inputs):
    """A node's outputs for the demo model."""
    return bench.host.run(f"MACE_Baseline{node}", clip=bench.clip, **inputs)


def esd(bench: Bench, work: Work, name: str, **settings) -> Made:
    """ESD-x or ESD-u."""
    chosen = {**ESD, "learning_rate": RATES[name], "method": METHODS[name], **settings}
    return run(bench, "ESD", model=bench.model, concepts=work.concepts, **chosen)[0], {}


def ablation(bench: Bench, work: Work, name: str, **settings) -> Made:
    """Concept Ablation."""
    chosen = {**AC, "learning_rate": RATES[name], **settings}
    return run(bench, "AC", model=bench.model, concepts=work.concepts, **chosen)[0], {}


def forget(bench: Bench, work: Work, name: str, **settings) -> Made:
    """Forget-Me-Not, on the same pictures as MACE's training."""
    if work.images is None:
        bench.draw_training_images(work)
    chosen = {**FMN, "learning_rate": RATES[name], **settings}
    return run(bench, "FMN", model=bench.model, images=work.images, **chosen)[0], {}


def others(bench: Bench, work: Work) -> dict[str, str]:
    """The inputs that preserve all other things by name."""
    erased = {concept.target for concept in work.concepts}
    kept = "\n".join(thing for thing in bench.words["concepts"] if thing not in erased)
    return dict(preserve=kept, retention="none")


def uce(bench: Bench, work: Work, name: str, **settings) -> Made:
    """UCE, preserving all other things by name, as MACE's prior knows them from its captions.

    With nothing to preserve it loses all of them.
    """
    chosen = dict(erase_scale=1.0, preserve_scale=0.1, lamb=0.5, **others(bench, work), **settings)
    return run(bench, "UCE", model=bench.model, concepts=work.concepts, **chosen)[0], {}


def speed(bench: Bench, work: Work, name: str, **settings) -> Made:
    """SPEED, preserving all other things by name."""
    chosen = {**SPEED, **others(bench, work), **settings}
    return run(bench, "SPEED", model=bench.model, concepts=work.concepts, **chosen)[0], {}


def speed_as_for_lists(bench: Bench, work: Work, name: str) -> Made:
    """SPEED with the settings that are published for lists, preserving all other things by name."""
    return speed(bench, work, name, threshold=1e-4, retain_scale=0.05, filter=False)


def oce(bench: Bench, work: Work, name: str, **settings) -> Made:
    """OCE with the captions that MACE's prior has for the list, preserving all other things by name, which by its
    published weights for objects does not count."""
    leave_out = bench.host.module("mace.concepts.captions").leave_out
    held, _ = leave_out(bench.prior.texts.captions, [concept.target for concept in work.concepts])
    path = Path(bench.host.folder_paths.get_input_directory()) / CAPTIONS
    path.write_text("\n".join(held), encoding="utf-8")
    chosen = {**OCE, **others(bench, work), "captions": CAPTIONS, "count": len(held), **settings}
    return run(bench, "OCE", model=bench.model, concepts=work.concepts, **chosen)[0], {}


def oce_as_for_people(bench: Bench, work: Work, name: str) -> Made:
    """OCE with the published weights for as many celebrities, preserving all other things by name."""
    weights = bench.host.module("mace.baselines.oce").published_weights("celebrity", len(work.concepts))
    how = {scale: repr(value) for scale, value in asdict(weights).items()} | {"templates": "no"}
    return oce(bench, work, name, **how, solution="derived" if name == OCE_DERIVED else "published")


def sld(bench: Bench, work: Work, name: str, **settings) -> Made:
    """SLD with the medium setting."""
    return run(bench, "SLD", model=bench.model, concepts=work.concepts, preset="medium", **settings)[0], {}


def negative(bench: Bench, work: Work, name: str, **settings) -> Made:
    """A negative prompt."""
    conditioning = run(bench, "Negative", concepts=work.concepts, **settings)[0]
    return bench.model, {"negative": conditioning[0][0][0]}


BASELINES: dict[str, Callable[..., Made]] = {
    "UCE": uce,
    "SPEED": speed,
    SPEED_LISTS: speed_as_for_lists,
    "OCE": oce,
    OCE_PEOPLE: oce_as_for_people,
    OCE_DERIVED: oce_as_for_people,
    "ESD-x": esd,
    "ESD-u": esd,
    "AC": ablation,
    "FMN": forget,
    "SLD-M": sld,
    "negative prompt": negative,
}
