"""The sections of docs/results.md besides the comparisons of single and mixed erasures."""

from collections.abc import Mapping
from pathlib import Path

from benchmarks.erasure.methods import BASE, FUSED, REFINED
from benchmarks.erasure.statistics import by_name, harmonic_of_objects, mean_of, percent_of, values
from benchmarks.erasure.tables import Cells, methods_of, name_of, percent, share, table
from mace.measure.accuracy import h_people, h_styles


def mass(cells: Cells) -> str:
    """Fig. 7: growing numbers of erased things; H_c of 1 - Acc_e and Acc_s, synonyms where they were asked for."""
    rows = []
    for erased in sorted({cell["erased"] for cell in cells.values()}, key=lambda name: (list_length(name), name)):
        for method in methods_of(cells):
            cell = cells.get(f"{erased}/{method}")
            if cell is None:
                continue
            row = [erased, name_of(method)]
            for group in ("erased", "synonyms", "others", "captions"):
                row.append(percent_of(mean_of(by_name(cell, group))) if group in cell["groups"] else "-")
            row.append(percent(h_c(cell)) if "erased" in cell["groups"] else "-")
            for group in ("others", "captions"):
                moved, apart = share(cell, group, "moved"), cell["groups"][group]["frechet"]
                row.append("-" if method == BASE else f"{moved:.3f} / {apart:.2f}")
            row.append(f"{sum(cell['seconds'].values()):.0f} s" if cell["seconds"] else "-")
            rows.append(row)
    header = ["erased", "method", "Acc_e", "synonyms", "Acc_s", "Acc_s of captions", "H_c", "others moved / FID"]
    return table([*header, "captions moved / FID", "time"], rows)


def list_length(erased: str) -> int:
    """How many things a cell of mass erases, by what it is called."""
    return int(erased.partition(",")[0])


def h_c(cell: Mapping) -> float:
    """H_c of one cell of mass, 0..1."""
    return h_people(share(cell, "erased"), share(cell, "others"))


def aliases(cells: Cells) -> str:
    """Each class with aliases, given or found: Acc_e, synonyms, classes and others."""
    names = list(dict.fromkeys(cell["erased"] for cell in cells.values()))
    groups = ("erased", "synonyms", "classes", "others")
    shown = [method for method in methods_of(cells) if method != BASE]
    rows = []
    for name in names:
        found = [cells.get(f"{name}/{method}") for method in shown]
        words = next((", ".join(cell["aliases"]) for cell in found if cell and "aliases" in cell), "")
        row = [f"{name} ({words})" if words else name]
        rows.append(
            row + ["-" if cell is None else " / ".join(percent(share(cell, g)) for g in groups) for cell in found]
        )
    means, harmonic = [], []
    for method in shown:
        own = [cell for cell in cells.values() if cell["method"] == method]
        each = ([value for cell in own if (value := values(cell, group)) is not None] for group in groups)
        means.append(" / ".join(f"{100 * mean_of(found).value:.1f}" for found in each))
        harmonic.append(percent_of(harmonic_of_objects(own)))
    rows += [["**mean**", *means], ["**H_o**", *harmonic]]
    return table(["erased", *map(name_of, shown)], rows)


def styles(cells: Cells) -> str:
    """Table 3 in small; its CLIP scores where all cells have them."""
    rows, scored = [], all("clip" in cell["groups"]["style"] for cell in cells.values())
    for method in methods_of(cells):
        cell = next(cell for cell in cells.values() if cell["method"] == method)
        styled = (values(cell, "style", "style") > 0.5).astype(float)
        row = [name_of(method), percent_of(mean_of([styled])), percent_of(mean_of(by_name(cell, "style")))]
        row.append(percent_of(mean_of(by_name(cell, "others"))))
        row.append("-" if method == BASE else f"{share(cell, 'others', 'moved'):.3f}")
        if scored:
            gone, kept = (share(cell, group, "clip") for group in ("style", "others"))
            row += [f"{gone:.2f}", f"{kept:.2f}", f"{h_styles(kept, gone):.2f}"]
        rows.append(row)
    header = ["method", "style", "content in style", "content without it", "pictures without it moved"]
    return table([*header, *(("CLIP_e", "CLIP_s", "H_a") if scored else ())], rows)


def leak(cells: Cells) -> str:
    """Fig. 2b: by class, how often it appears without its own tokens."""
    names = list(dict.fromkeys(cell["erased"] for cell in cells.values()))
    methods = (BASE, REFINED, FUSED)
    own = {method: [values(cells[f"{name}/{method}"], "residual") for name in names] for method in methods}
    rows = [
        [name, *(percent(float(own[method][place].mean())) for method in methods)] for place, name in enumerate(names)
    ]
    rows.append(["**mean**", *(percent_of(mean_of(own[method])) for method in methods)])
    return table(["class", *map(name_of, methods)], rows)


def ablations(cells: Cells) -> str:
    """Tables 4 and 5."""
    rows = []
    for key, cell in cells.items():
        row = [cell["variant"], cell["method"]] if "variant" in cell else [name_of(cell["method"]), "-"]
        row += [percent(share(cell, group)) for group in ("erased", "synonyms", "classes", "others")]
        row.append(percent(float((values(cell, "style", "style") > 0.5).mean())))
        row.append("-" if key == f"ten/{BASE}" else f"{share(cell, 'others', 'moved'):.3f}")
        rows.append(row)
    header = ["trained", "put together by", "objects", "synonyms", "cat", "others", "style", "others moved"]
    return table(header, rows)


def unseen(cells: Cells) -> str:
    """By form of the prompt: the class in the base and the erased model, and what else stays."""
    names = dict.fromkeys(cell["erased"] for cell in cells.values())
    erased = [name for name in names if f"{name}/{FUSED}" in cells]
    forms = [group for group in next(iter(cells.values()))["groups"] if not group.startswith("others: ")]

    def shares(form: str, method: str) -> list[str]:
        found = [cells[f"{name}/{method}"] for name in erased]
        return [" / ".join(percent(share(cell, group)) for cell in found) for group in (form, f"others: {form}")]

    rows = [[f'"{form.replace("{}", "X")}"', *shares(form, BASE), *shares(form, FUSED)] for form in forms]
    header = ["prompt", "base: " + " / ".join(erased), "base: others", "erased: class", "erased: others"]
    return table(header, rows)


def sampling(cells: Cells) -> str:
    """By sampler and steps."""
    rows = []
    for cell in cells.values():
        found = cell["groups"]["all"]
        rate = len(found["names"]) / cell["seconds"]["pictures"]
        rows.append([cell["sampler"], str(cell["steps"]), percent(share(cell, "all")), f"{rate:.1f}"])
    return table(["sampler", "steps", "right", "pictures a second"], rows)


def maps(cells: Cells) -> str:
    """Figs. 2a and 10."""
    (cell,) = cells.values()
    return f"![attention maps](figures/{Path(cell['file']).name})\n"


def sheets(cells: Cells) -> str:
    """Contact sheets."""
    return "\n".join(f"![{name}](figures/{Path(cell['file']).name})\n" for name, cell in cells.items())


SECTIONS: Mapping = {
    "aliases": aliases,
    "found": aliases,
    "mass": mass,
    "styles": styles,
    "leak": leak,
    "ablations": ablations,
    "unseen": unseen,
    "maps": maps,
    "sheets": sheets,
    "sampling": sampling,
}
