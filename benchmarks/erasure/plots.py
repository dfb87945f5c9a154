"""Plots of recorded cells, as files beside docs/results.md."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.erasure.bench import CLOSED_FORM
from benchmarks.erasure.methods import ALONE, BASE, FUSED, REFINED, SUM
from benchmarks.erasure.more_sections import h_c
from benchmarks.erasure.statistics import by_name, harmonic_of_objects, mean_of
from benchmarks.erasure.studies import CURVES, STEPS
from benchmarks.erasure.tables import Cells, methods_of, name_of, share
from benchmarks.erasure.tasks import OTHER_NOISE
from mace.measure.statistics import Estimate

COLOURS = {FUSED: "#c03a5b", REFINED: "#3a6fc0", SUM: "#e0a030", "UCE": "#4a9a5a"}
COLOURS |= {ALONE: "#7a5ac0", "SPEED": "#8a8a40", "OCE": "#707070"}
# So that a plot of the same numbers is the same file.
SAVED = dict(dpi=110, bbox_inches="tight", metadata={"Software": None})


def label_of(method: str) -> str:
    """A method as a plot names it."""
    return name_of(method).strip("*")


def objects(cells: Cells, folder: Path) -> str:
    """H_o of every method with its interval, as bars; the file's name."""
    methods = [method for method in methods_of(cells) if method != BASE]
    found = [harmonic_of_objects([cell for cell in cells.values() if cell["method"] == m]) for m in methods]
    figure = Figure(figsize=(7, 3))
    axis = figure.subplots()
    places = range(len(methods))
    heights = [100 * estimate.value for estimate in found]
    colours = [COLOURS.get(method, "#888888") for method in methods]
    axis.bar(places, heights, yerr=_errors(found), color=colours, capsize=3)
    axis.set_xticks(places, [label_of(method) for method in methods], rotation=30, ha="right")
    axis.set_ylabel("H_o, percent")
    axis.set_ylim(0, 105)
    return _save(figure, folder / "plot_objects.png")


def mass(cells: Cells, folder: Path) -> str:
    """Erased, kept and moved against the number of erased things; the file's name."""
    counts = sorted({int(cell["erased"]) for cell in cells.values() if cell["erased"].isdecimal()} - {0})
    lines = {method: [cells.get(f"{count}/{method}") for count in counts] for method in COLOURS}
    figure = Figure(figsize=(9, 6))
    axes = figure.subplots(2, 2, sharex=True)
    panels = (
        ("Acc_e (lower is better)", lambda cell: _spread(cell, "erased")),
        ("Acc_s (higher is better)", lambda cell: _spread(cell, "others")),
        ("H_c (higher is better)", lambda cell: Estimate(h_c(cell), h_c(cell), h_c(cell))),
        ("FID to the base model, kept things", lambda cell: cell["groups"]["others"]["frechet"]),
    )
    for axis, (title, value) in zip(axes.flat, panels, strict=True):
        for method, line in lines.items():
            known = [(count, value(cell)) for count, cell in zip(counts, line, strict=True) if cell is not None]
            if not known:
                continue
            at, found = zip(*known, strict=True)
            if isinstance(found[0], Estimate):
                heights = [100 * estimate.value for estimate in found]
                axis.errorbar(at, heights, _errors(found), label=label_of(method), color=COLOURS[method], marker="o")
                axis.set_ylim(-3, 103)
            else:
                axis.plot(at, found, label=label_of(method), color=COLOURS[method], marker="o")
        axis.set_title(title, fontsize=10)
        axis.set_xscale("log")
        axis.set_xticks(counts, [str(count) for count in counts])
    chance = cells.get(f"0/{OTHER_NOISE}")
    if chance is not None:
        axes[1, 1].axhline(chance["groups"]["others"]["frechet"], color="#888888", linestyle=":", label="other noise")
    axes[1, 1].legend(fontsize=8)
    for axis in axes[1]:
        axis.set_xlabel("erased things")
    return _save(figure, folder / "plot_mass.png")


def ablations(cells: Cells, folder: Path) -> str | None:
    """Keys, values and both against the number of steps (Table 5); the file's name, None before any is recorded."""
    if not any(f"{name}, {CLOSED_FORM}" in cells for name in CURVES):
        return None
    trained = {"keys": "#3a6fc0", "values": "#e0a030", "keys and values": "#c03a5b"}
    figure = Figure(figsize=(11, 3))
    axes = figure.subplots(1, 3, sharex=True)
    for axis, group in zip(axes, ("erased", "synonyms", "others"), strict=True):
        for name, colour in trained.items():
            line = [_at(cells, name, steps) for steps in STEPS]
            known = [(n, 100 * share(cell, group)) for n, cell in zip(STEPS, line, strict=True) if cell]
            if known:
                axis.plot(*zip(*known, strict=True), color=colour, marker="o", label=name)
        axis.set_title(f"{'objects' if group == 'erased' else group}, percent right", fontsize=10)
        axis.set_xlabel("steps")
        axis.set_ylim(-3, 103)
    axes[1].legend(fontsize=8)
    return _save(figure, folder / "plot_steps.png")


def _at(cells: Cells, name: str, steps: int) -> Mapping | None:
    """All steps of keys and values together is the preset's own row."""
    whole = name == "keys and values" and steps == STEPS[-1]
    return cells.get(f"{'all' if whole else f'{name}, {steps} steps'}, {CLOSED_FORM}")


def _spread(cell: Mapping, group: str) -> Estimate:
    return mean_of(by_name(cell, group))


def _errors(found: Sequence[Estimate]) -> list[list[float]]:
    """Down to the interval's lower end, and up to its upper, in percent."""
    below = [max(0.0, 100 * (estimate.value - estimate.low)) for estimate in found]
    return [below, [max(0.0, 100 * (estimate.high - estimate.value)) for estimate in found]]


def _save(figure: Figure, path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, **SAVED)
    return path.name


PLOTS = {"objects": objects, "mass": mass, "ablations": ablations}
