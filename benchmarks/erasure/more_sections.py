"""The sections of docs/results.md besides the comparisons of single and mixed erasures."""

from collections.abc import Mapping
from pathlib import Path

from benchmarks.erasure.methods import BASE, FUSED, REFINED
from benchmarks.erasure.statistics import by_name, mean_of, percent_of, values
from benchmarks.erasure.tables import Cells, methods_of, name_of, percent, share, table
from mace.evaluate import h_people


def mass(cells: Cells) -> str:
    """Fig. 7: growing numbers of erased things; H_c of 1 - Acc_e and Acc_s."""
    rows = []
    for count in sorted({int(cell["erased"]) for cell in cells.values()}):
        for method in methods_of(cells):
            cell = cells.get(f"{count}/{method}")
            if cell is None:
                continue
            erased, kept = share(cell, "erased"), share(cell, "others")
            row = [str(count), name_of(method)]
            row += [percent_of(mean_of(by_name(cell, group))) for group in ("erased", "others")]
            row += [percent(h_people(erased, kept))]
            row.append("-" if method == BASE else f"{share(cell, 'others', 'moved'):.3f}")
            row.append(f"{sum(cell['seconds'].values()):.0f} s" if cell["seconds"] else "-")
            rows.append(row)
    return table(["erased", "method", "Acc_e", "Acc_s", "H_c", "others moved", "time"], rows)


def styles(cells: Cells) -> str:
    """Table 3 in small."""
    rows = []
    for method in methods_of(cells):
        cell = next(cell for cell in cells.values() if cell["method"] == method)
        styled = (values(cell, "style", "style") > 0.5).astype(float)
        row = [name_of(method), percent_of(mean_of([styled])), percent_of(mean_of(by_name(cell, "style")))]
        row.append(percent_of(mean_of(by_name(cell, "others"))))
        row.append("-" if method == BASE else f"{share(cell, 'others', 'moved'):.3f}")
        rows.append(row)
    header = ["method", "style", "content in style", "content without it", "pictures without it moved"]
    return table(header, rows)


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
        row = [cell.get("variant", name_of(cell["method"])), cell["method"] if "variant" in cell else "-"]
        row += [percent(share(cell, group)) for group in ("erased", "synonyms", "classes", "others")]
        row.append(percent(float((values(cell, "style", "style") > 0.5).mean())))
        row.append("-" if key == f"ten/{BASE}" else f"{share(cell, 'others', 'moved'):.3f}")
        rows.append(row)
    header = ["trained", "put together by", "objects", "synonyms", "cat", "others", "style", "others moved"]
    return table(header, rows)


def unseen(cells: Cells) -> str:
    """By form of the prompt: the class in the base and the erased model, and what else stays."""
    erased = list(dict.fromkeys(cell["erased"] for cell in cells.values()))
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
    "mass": mass,
    "styles": styles,
    "leak": leak,
    "ablations": ablations,
    "unseen": unseen,
    "maps": maps,
    "sheets": sheets,
    "sampling": sampling,
}
