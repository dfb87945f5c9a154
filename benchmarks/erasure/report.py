"""docs/results.md, written from the recorded cells of the tasks."""

from collections.abc import Mapping
from pathlib import Path

from benchmarks.erasure.methods import BASE, FUSED
from benchmarks.erasure.more_sections import SECTIONS as MORE
from benchmarks.erasure.plots import PLOTS
from benchmarks.erasure.statistics import by_name, h_o, harmonic_of_objects, mean_of, percent_of, values
from benchmarks.erasure.tables import Cells, methods_of, name_of, percent, share, table
from benchmarks.erasure.tasks import SHARED
from benchmarks.erasure.text import ABOUT, HEAD


def objects(cells: Cells) -> str:
    """Table 1: means of all methods with intervals, then every class."""
    names = list(dict.fromkeys(cell["erased"] for cell in cells.values()))
    rows, pictures = [], {}
    for method in methods_of(cells):
        own = [cell for cell in cells.values() if cell["method"] == method]
        row = [name_of(method), str(len(own))]
        for group in ("erased", "classes", "synonyms", "others"):
            found = [value for cell in own if (value := values(cell, group)) is not None]
            pictures[group] = max(pictures.get(group, 0), sum(map(len, found)))
            row.append(percent_of(mean_of(found)))
        row.append(percent_of(harmonic_of_objects(own)))
        row.append(percent(sum(share(cell, "erased", "p") for cell in own) / len(own)))
        row.append("-" if method == BASE else f"{sum(share(cell, 'others', 'moved') for cell in own) / len(own):.3f}")
        rows.append(row)
    header = ["method", "classes", "Acc_e", "Acc_s", "Acc_g", "others", "H_o", "p of the class", "others moved"]
    counts = ", ".join(f"{group} {count}" for group, count in pictures.items())
    parts = [table(header, rows), f"\nPictures a method, over all classes: {counts}.\n\n"]
    shown = [method for method in methods_of(cells) if method != BASE]
    rows = []
    for name in names:
        row = [name]
        for method in shown:
            cell = cells.get(f"{name}/{method}")
            groups = ("erased", "classes", "synonyms", "others")
            row.append("-" if cell is None else " / ".join(percent(share(cell, group)) for group in groups))
        rows.append(row)
    parts.append("Class by class: Acc_e / Acc_s / Acc_g / others.\n\n")
    parts.append(table(["erased", *map(name_of, shown)], rows))
    parts.append("\nH_o class by class, and what the fused model no longer draws:\n\n")
    for name in names:
        own = [(method, cells[f"{name}/{method}"]) for method in shown if f"{name}/{method}" in cells]
        scores = [f"{name_of(method)} {percent(h_o(cell))}" for method, cell in own]
        parts.append(f"- {name}: {', '.join(scores)}. Lost: {lost(cells, name)}.\n")
    return "".join(parts)


def lost(cells: Cells, name: str, method: str = FUSED) -> str:
    """What a method no longer draws of an erasure's other classes and things, in words."""
    base, cell = cells.get(f"{name}/{BASE}"), cells.get(f"{name}/{method}")
    if base is None or cell is None:
        return "not measured"
    missing = []
    for group in ("classes", "others"):
        before, after = base["groups"][group], cell["groups"][group]
        each = zip(before["names"], before["right"], after["right"], strict=True)
        missing += [thing for thing, was, stays in each if was == "1" and stays == "0"]
    counted = {thing: missing.count(thing) for thing in dict.fromkeys(missing)}
    return ", ".join(thing if n == 1 else f"{thing} ({n} times)" for thing, n in counted.items()) or "nothing"


def mixed(cells: Cells) -> str:
    """Ten concepts in one run."""
    rows = []
    for method in methods_of(cells):
        cell = cells[f"ten/{method}"]
        row = [name_of(method)]
        row += [percent_of(mean_of(by_name(cell, group))) for group in ("erased", "synonyms", "classes", "others")]
        styled = values(cell, "style", "style")
        row.append(percent_of(mean_of([(styled > 0.5).astype(float)])))
        row.append(percent(share(cell, "style")))
        row.append("-" if method == BASE else f"{share(cell, 'others', 'moved'):.3f}")
        rows.append(row)
    header = ["method", "objects", "synonyms", "cat", "others", "style", "content in style", "others moved"]
    some = cells[f"ten/{BASE}"]["groups"]
    counts = ", ".join(f"{group} {len(found['names'])}" for group, found in some.items())
    parts = [table(header, rows), f"\nPictures a method: {counts}.\n"]
    if f"ten/{FUSED}" in cells:
        parts.append(f"\nThe fused model no longer draws: {lost(cells, 'ten')}.\n")
        spent = cells[f"ten/{FUSED}"]["seconds"]
        parts.append("\nTime of the stages: " + ", ".join(f"{name} {value:.1f} s" for name, value in spent.items()))
        parts.append(".\n")
    return "".join(parts)


def shared(cells: Cells) -> str:
    """Words that a kept concept shares."""
    rows = []
    for name, kept in SHARED.items():
        for method in methods_of(cells):
            cell = cells.get(f"{name}/{method}")
            if cell is not None:
                found = (percent(share(cell, group)) for group in ("erased", "kept"))
                rows.append([name, ", ".join(kept), name_of(method), *found])
    return table(["erased", "kept", "method", "erased word", "kept"], rows)


SECTIONS = {"objects": objects, "mixed": mixed, "shared": shared, **MORE}


def write_report(recorded: Mapping[str, Cells], path: Path) -> None:
    """Write the page of what is recorded, task by task."""
    parts = [HEAD]
    missing = [task for task in SECTIONS if task in recorded and not recorded[task]]
    if missing:
        parts.append(f"\nTasks that are written and not recorded here: {', '.join(missing)}.\n")
    for task, section in SECTIONS.items():
        if recorded.get(task):
            before, after = ABOUT[task]
            parts.append(f"{before}\n{section(recorded[task])}")
            plot = PLOTS[task](recorded[task], path.parent / "figures") if task in PLOTS else None
            if plot:
                parts.append(f"\n![{task}](figures/{plot})\n")
            parts.append(after)
    path.write_text("".join(parts), encoding="utf-8")
