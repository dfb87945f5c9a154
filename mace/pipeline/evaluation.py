"""An evaluation of an erasure: pictures of both models from the same noise, judged, and the measures of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..concepts.subjects import KEPT, SYNONYM, Subject
from ..measure.accuracy import (
    BODY_PARTS,
    CLIP_NAMES,
    DETECTION_NAMES,
    accuracy_names,
    compare,
    count_detections,
    draws_for,
)
from ..measure.distance import frechet_distance, paired_distance
from ..method.tokens import fill
from .host import Draws, Judge

# Kinds of judges.
CLIP, NUDENET, CLASSIFIER = "CLIP", "NudeNet", "classifier file"
# What the contact sheet shows of an evaluation.
SHEET_ROWS, SHEET_SEEDS = 40, 4
BASE, ERASED_MODEL = "base", "erased"


@dataclass(frozen=True)
class Plan:
    """What is drawn and judged. templates with {}; seeds of the noise, the same for every prompt and both models."""

    subjects: tuple[Subject, ...]
    templates: tuple[str, ...]
    seeds: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Subjects, templates, seeds: the shape of every measure."""
        return len(self.subjects), len(self.templates), len(self.seeds)

    @property
    def asked(self) -> list[tuple[str, int]]:
        """(prompt, seed) of every picture, in the order of a measure's numbers."""
        prompts = [fill(template, subject.phrase) for subject in self.subjects for template in self.templates]
        return [(prompt, seed) for prompt in prompts for seed in self.seeds]

    @property
    def labels(self) -> list[str]:
        """What the judge is to see in each of them."""
        each = len(self.templates) * len(self.seeds)
        return [subject.label for subject in self.subjects for _ in range(each)]

    @property
    def sheet(self) -> list[list[int]]:
        """By row of the contact sheet, its pictures' places: the first template, the first seeds."""
        each = len(self.templates) * len(self.seeds)
        rows = range(min(len(self.subjects), SHEET_ROWS))
        return [[row * each + seed for seed in range(min(len(self.seeds), SHEET_SEEDS))] for row in rows]

    def of_group(self, *groups: str) -> list[int]:
        """The places of the pictures of these groups."""
        each = len(self.templates) * len(self.seeds)
        return [i * each + k for i, s in enumerate(self.subjects) if s.group in groups for k in range(each)]


@dataclass(frozen=True)
class Evaluation:
    """results: for JSON.  pictures: by model, uint8 [H, W, 3] of the places in the plan's sheet."""

    plan: Plan
    results: dict
    pictures: dict[str, dict[int, Tensor]]


def evaluate(galleries: Mapping[str, Draws], plan: Plan, judge: Judge, settings: dict, threshold: float) -> Evaluation:
    """Draw, judge and measure. galleries: of the models BASE and ERASED_MODEL, seen by `judge`, which is let go of when
    this ends.

    settings: of the drawing, for the results.  threshold: of NudeNet's scores.  Raises ValueError for labels that the
    judge does not know.
    """
    asked = plan.asked
    shown = {place for row in plan.sheet for place in row}
    try:
        judge.choose_among(plan.labels)
        looked = {name: gallery.look(asked, shown) for name, gallery in galleries.items()}
        seen = {name: found for name, (found, _) in looked.items()}
        measured = _detections(plan, seen, threshold) if judge.kind == NUDENET else _classified(plan, seen, judge)
    finally:
        judge.release()
    drawn = sum(gallery.drawn for gallery in galleries.values())
    results = {
        "judge": {"kind": judge.kind, "name": judge.name},
        "templates": list(plan.templates),
        "seeds": list(plan.seeds),
        "settings": settings,
        "pictures": {"of each model": len(asked), "drawn now": drawn},
        "same model": galleries[BASE].key == galleries[ERASED_MODEL].key,
        **measured,
    }
    return Evaluation(plan, results, {name: pictures for name, (_, pictures) in looked.items()})


def _as_dict(compared: dict) -> dict:
    return {name: {which: value.as_dict() for which, value in row.items()} for name, row in compared.items()}


def _classified(plan: Plan, seen: dict[str, Sequence[dict]], judge: Judge) -> dict:
    """Accuracies, CLIP scores and distances of both models."""
    drawn = draws_for(plan.subjects, len(plan.seeds))
    with_synonyms = any(subject.group == SYNONYM for subject in plan.subjects)
    names = accuracy_names(with_synonyms)
    measures: dict[str, dict[str, np.ndarray]] = {"top-1": {}, "probability": {}}
    for which, found in seen.items():
        for measure, values in zip(measures.values(), judge.answers(found, plan.labels), strict=True):
            measure[which] = values.double().numpy().reshape(plan.shape)
    if judge.kind == CLIP:
        asked = [prompt for prompt, _ in plan.asked]
        measures["CLIP score"] = {
            which: judge.scores(found, asked).double().numpy().reshape(plan.shape) for which, found in seen.items()
        }
    results: dict = {"H is": "H_o (Eq. 8)" if with_synonyms else "H_c (Eq. 9)"}
    for measure, values in measures.items():
        called = CLIP_NAMES if measure == "CLIP score" else names
        results[measure] = _as_dict(compare(plan.subjects, values[BASE], values[ERASED_MODEL], called, drawn))
    results["by name"] = [
        {
            "name": subject.phrase,
            "label": subject.label,
            "group": subject.group,
            **{name: {which: float(v[row].mean()) for which, v in values.items()} for name, values in measures.items()},
        }
        for row, subject in enumerate(plan.subjects)
    ]
    results["kept pictures"] = _distances(plan, seen)
    return results


def _distances(plan: Plan, seen: dict[str, Sequence[dict]]) -> dict:
    """How far the kept concepts' pictures have moved, in the judge's features."""
    kept = plan.of_group(KEPT)
    if len(kept) < 2:
        return {"pictures": len(kept), "paired distance": None, "Frechet distance": None, "shrinkage": None}
    base, erased = (torch.stack([seen[which][i]["features"] for i in kept]) for which in (BASE, ERASED_MODEL))
    frechet, weight = frechet_distance(base, erased)
    paired = paired_distance(base, erased)
    return {
        "pictures": len(kept),
        "paired distance": None if np.isnan(paired) else paired,
        "Frechet distance": frechet,
        "shrinkage": weight,
    }


def _detections(plan: Plan, seen: dict[str, Sequence[dict]], threshold: float) -> dict:
    """Table 2's counts for the pictures of what was erased (with its aliases and synonyms) and of what is kept."""
    groups = {"erased": sorted({s.group for s in plan.subjects} - {KEPT}), "kept": [KEPT]}
    counts = {}
    for group, members in groups.items():
        places = plan.of_group(*members)
        counts[group] = {
            which: count_detections([found[place]["detections"] for place in places], threshold)
            for which, found in seen.items()
        }
    each = {
        which: np.array([count_detections([entry["detections"]], threshold)["Total"] for entry in found], dtype=float)
        for which, found in seen.items()
    }
    values = [each[which].reshape(plan.shape) for which in (BASE, ERASED_MODEL)]
    compared = compare(plan.subjects, *values, DETECTION_NAMES, draws_for(plan.subjects, len(plan.seeds)))
    return {
        "threshold": threshold,
        "body parts": list(BODY_PARTS.values()),
        "detections": counts,
        "detections a picture": _as_dict(compared),
    }
