"""docs/results.md, written from the recorded results of benchmarks/erasure.py."""

from collections.abc import Mapping
from pathlib import Path

HEAD = """# What erasing does to the demo model

Recorded by

    python dev.py run python -m benchmarks.erasure --task single --task ten --task shared --report

on two CPU cores, with the preset *demo model (mace_demo)* for every concept: the same settings for one object and for
ten, for objects and a style. A picture counts as showing a concept when the judge's first answer of its 210 names is
that concept (see [the model's card](../assets/demo/CARD.md)). Every stage draws from the same noise as the base model,
8 steps of ddim, guidance 4, with the prompts "a photo of the X" and "an illustration of the X". The settings were
searched with six other prompts ([search.md](search.md)) and another seed. Neither the prior's captions nor the
templates that erasing reads hold any of these prompts; the captions hold their words in other arrangements, such as
"a photo of a X" or "illustration of the X".

Stages: *refined* is CFR Refine alone; *LoRA* the concept's own erasure LoRA on the refined model; *fused* the closed
form of Eq. 7, the result; *naive* the sum of Eq. 6 in its place. Numbers are percent. *Synonyms* are Table 6's, not
given as aliases, and only those that the base model draws in half of the pictures or more. *Others* are the other CIFAR
classes and the rest of the model's 206 things: all of them for base and fused, each sixth for the other stages.
"""

ONE = """
## One object at a time

H_o is the harmonic mean of 1 - accuracy on the concept, accuracy on the nine other classes, and 1 - accuracy on the
synonyms (Table 1 of the paper).

| erased | stage | concept | synonyms | other classes | others | H_o |
|---|---|---|---|---|---|---|
"""

ABOUT_ONE = """
Wanted were at most 10 for the concept, others within 2 points, synonyms at most 20 and H_o above 92.6. **The synonyms
of one object alone are not erased as they should be.** For a list of one, lambda2 of the fusion is too large: it
takes back part of what the refinement did, while the LoRA on the refined model, which the naive sum of one is, erases
most of the synonyms and keeps nearly all others. A lambda2 that grows with the number of concepts is the next thing
to try.
"""

TEN = """
## Nine objects and a style in one run

airplane, automobile, bird, deer, dog, frog, horse, ship and truck, and the style Twemoji, erased together. *Style* is
the share of pictures asked for as "a Twemoji emoji of a X" in which the judge sees that style. *LoRA* judges each
object on the model with its own LoRA alone.

| stage | objects | synonyms | others | style |
|---|---|---|---|---|
"""

ABOUT_TEN = """
Wanted were at most 10 for the objects and the style, at most 30 for the synonyms, and others within 4 points of the
base. The naive sum does as well here: with this prior the refinement does most of the work, and the LoRAs add little to
it.
"""

SHARED = """
## Words that a kept concept shares

Nothing is preserved by name here. *Kept* are the concepts whose names hold the erased word.

| erased | kept | stage | erased word | kept |
|---|---|---|---|---|
"""

STAGES = ("base", "refined", "LoRA", "fused", "naive")


def percent(value: float | None) -> str:
    """0..1 as whole percent; a dash for what was not measured."""
    return "-" if value is None else f"{100 * value:.0f}"


def harmonic(found: Mapping) -> float | None:
    """H_o of one erasure, 0..1; None without synonyms."""
    parts = [1 - found["erased"], found["CIFAR others"]]
    if "synonyms" not in found:
        return None
    parts.append(1 - found["synonyms"])
    return len(parts) / sum(1 / part for part in parts) if all(parts) else 0.0


def single_rows(results: Mapping[str, Mapping]) -> list[str]:
    """The rows of one object at a time, and their means."""
    rows = []
    for name, stages in results.items():
        for stage in STAGES:
            found = stages[stage]
            cells = [found["erased"], found.get("synonyms"), found["CIFAR others"], found["others"], harmonic(found)]
            rows.append(f"| {name} | {stage} | " + " | ".join(map(percent, cells)) + " |")
    for stage in STAGES:
        found = [stages[stage] for stages in results.values()]
        means = []
        for part in ("erased", "synonyms", "CIFAR others", "others"):
            values = [entry[part] for entry in found if part in entry]
            means.append(sum(values) / len(values))
        scores = [score for score in map(harmonic, found) if score is not None]
        cells = " | ".join(f"{100 * value:.1f}" for value in (*means, sum(scores) / len(scores)))
        rows.append(f"| **mean of {len(found)}** | {stage} | {cells} |")
    return rows


def lost(stages: Mapping) -> str:
    """What the fused model no longer draws, in words."""
    base, fused = (set(stages[stage]["lost"]) for stage in ("base", "fused"))
    missing = ", ".join(name for name in stages["fused"]["lost"] if name not in base)
    count = stages["fused"]["pictures of others"]
    return f"no longer drawn, of {count} pictures of others: {missing or 'none'}" + (
        f" (the base draws {len(base)} wrong itself)" if base else ""
    )


def write_report(results: Mapping, path: Path) -> None:
    """Write the page of what is recorded."""
    parts = [HEAD]
    if "single" in results:
        parts += [ONE, "\n".join(single_rows(results["single"])), "\n"]
        parts += [f"\n- {name}: {lost(stages)}" for name, stages in results["single"].items()]
        parts.append(f"\n{ABOUT_ONE}")
    if "ten" in results:
        stages = results["ten"]["ten"]
        parts.append(TEN)
        for stage in STAGES:
            found = stages[stage]
            cells = [found["erased"], found.get("synonyms"), found.get("others"), found.get("style")]
            parts.append(f"| {stage} | " + " | ".join(map(percent, cells)) + " |\n")
        parts.append(f"\n{lost(stages).capitalize()}.\n")
        seconds = ", ".join(f"{name} {value:.1f} s" for name, value in stages["seconds"].items())
        parts.append(f"\nTime of the stages: {seconds}.\n{ABOUT_TEN}")
    if "shared" in results:
        from benchmarks.erasure import SHARED as KEPT

        parts.append(SHARED)
        for name, stages in results["shared"].items():
            for stage in STAGES:
                found = stages[stage]
                kept = ", ".join(KEPT[name])
                parts.append(f"| {name} | {kept} | {stage} | {percent(found['erased'])} | {percent(found['kept'])} |\n")
    path.write_text("".join(parts), encoding="utf-8")
