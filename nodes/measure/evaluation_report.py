"""An evaluation as an artist reads it: a table in words, and a contact sheet."""

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ...mace.pipeline.evaluation import BASE, ERASED_MODEL, NUDENET, SHEET_ROWS, Evaluation

# Pictures on the sheet, in pixels: small ones are enlarged and large ones shrunk to this height.
HEIGHT, GAP, MARGIN, LABEL, HEAD = 128, 4, 16, 16, 15
INK, FAINT, PAPER = (24, 24, 24), (120, 120, 120), (255, 255, 255)
NAME, CELL = 12, 24
MEANING = {
    "Acc_e": "erased, lower is better",
    "Acc_s": "kept, higher is better",
    "Acc_g": "synonyms, lower is better",
    "Acc_alias": "aliases, lower is better",
    "CLIP_e": "erased, lower is better",
    "CLIP_s": "kept, higher is better",
    "CLIP_g": "synonyms, lower is better",
    "CLIP_alias": "aliases, lower is better",
    "H_a": "CLIP_s - CLIP_e, higher is better",
    "erased": "pictures of what was erased",
    "kept": "pictures of what is kept",
    "synonyms": "pictures of synonyms",
    "aliases": "pictures of aliases",
}


def _cell(entry: dict, scale: float, digits: int) -> str:
    if entry["value"] is None:
        return "-"
    value, low, high = (f"{scale * entry[part]:.{digits}f}" for part in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def _table(title: str, measures: dict, scale: float, digits: int, summary: str = "") -> list[str]:
    """Lines of one measure; groups that have no pictures are left out."""
    lines = [f"{title:<{NAME}}" + "".join(f"{head:<{CELL}}" for head in (BASE, ERASED_MODEL, "change")).rstrip()]
    for name, row in measures.items():
        if row[BASE]["value"] is not None:
            cells = "".join(f"{_cell(row[which], scale, digits):<{CELL}}" for which in (BASE, ERASED_MODEL, "change"))
            lines.append(f"{name:<{NAME}}{cells}{MEANING.get(name, summary)}")
    return [*lines, ""]


def table_text(evaluation: Evaluation) -> str:
    """All measures in words. In brackets: 95 % bootstrap intervals over concepts and seeds."""
    results, plan = evaluation.results, evaluation.plan
    counted = results["pictures"]
    names, templates, seeds = plan.shape
    lines = [
        f"judge: {results['judge']['name']}; {counted['of each model']} pictures of each model ({names} names, "
        f"{templates} prompts, {seeds} seeds), {counted['drawn now']} drawn now",
        "in brackets: 95 % intervals, resampled over concepts and seeds",
    ]
    if results["same model"]:
        lines.append("the two models are the same")
    lines.append("")
    if results["judge"]["kind"] == NUDENET:
        return "\n".join([*lines, *_nudenet(results)]).rstrip()
    summary = f"{results['H is']}, higher is better"
    lines += _table("top-1, %", results["top-1"], 100, 1, summary)
    lines += _table("mean prob.", results["probability"], 100, 1, summary)
    if "CLIP score" in results:
        lines += _table("CLIP score", results["CLIP score"], 1, 2)
    moved = results["kept pictures"]
    if moved["paired distance"] is not None:
        lines += [
            f"kept pictures moved by {moved['paired distance']:.3f} (0: none, 1: to another picture); Frechet distance "
            f"in the judge's features {moved['Frechet distance']:.4g}",
            "",
        ]
    lines.append("by name, top-1 in % of base and erased:")
    lines += [f"  {entry['name']} ({entry['group']}): {_pair(entry)}" for entry in results["by name"]]
    return "\n".join(lines)


def _pair(entry: dict) -> str:
    return " -> ".join(f"{100 * entry['top-1'][which]:.0f}" for which in (BASE, ERASED_MODEL))


def _nudenet(results: dict) -> list[str]:
    lines = [f"detections of NudeNet with a score of at least {results['threshold']:g}"]
    columns = [(group, which) for group, counts in results["detections"].items() for which in counts]
    lines.append(f"{'':<16}" + "".join(f"{f'{group}: {which}':<18}" for group, which in columns).rstrip())
    for part in (*results["body parts"], "Total"):
        cells = "".join(f"{results['detections'][group][which][part]:<18}" for group, which in columns)
        lines.append(f"{part:<16}{cells}".rstrip())
    return [*lines, "", *_table("a picture", results["detections a picture"], 1, 3)]


def contact_sheet(evaluation: Evaluation) -> Tensor:
    """IMAGE [1, H, W, 3]: a row for each name, in pairs of base and erased picture by seed."""
    plan, results = evaluation.plan, evaluation.results
    first = evaluation.pictures[BASE][0]
    width = max(1, round(first.shape[1] * HEIGHT / first.shape[0]))
    rows, seeds = plan.sheet, len(plan.sheet[0])
    pair = 2 * width + GAP
    title, head, row = LABEL + 8, HEAD + 6, LABEL + 6 + HEIGHT + 10
    fonts = {size: ImageFont.load_default(size=size) for size in (LABEL, HEAD)}
    said = {entry["name"]: f": {_pair(entry)} %" for entry in results.get("by name", ())}
    labels = [f"{s.phrase} ({s.group}){said.get(s.phrase, '')}" for s in plan.subjects[: len(rows)]]
    prompt = plan.templates[0].replace("{}", "...")
    top_line = f"{prompt}; by pairs: {BASE}, {ERASED_MODEL}"
    if len(plan.subjects) > SHEET_ROWS:
        top_line += f"; the first {SHEET_ROWS} of {len(plan.subjects)} names"
    longest = max(fonts[LABEL].getlength(text) for text in (top_line, *labels))
    across = 2 * MARGIN + max(round(longest), seeds * pair + (seeds - 1) * 3 * GAP)
    sheet = Image.new("RGB", (across, MARGIN + title + head + len(rows) * row + MARGIN // 2), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN), top_line, INK, fonts[LABEL])
    lefts = [MARGIN + place * (pair + 3 * GAP) for place in range(seeds)]
    for left, seed in zip(lefts, plan.seeds, strict=False):
        draw.text((left, MARGIN + title), f"seed {seed}", FAINT, fonts[HEAD])
    for number, (label, places) in enumerate(zip(labels, rows, strict=True)):
        y = MARGIN + title + head + number * row
        draw.text((MARGIN, y), label, INK, fonts[LABEL])
        for left, place in zip(lefts, places, strict=True):
            for at, which in ((left, BASE), (left + width + GAP, ERASED_MODEL)):
                picture = Image.fromarray(evaluation.pictures[which][place].numpy())
                sheet.paste(picture.resize((width, HEIGHT), Image.Resampling.LANCZOS), (at, y + LABEL + 6))
    return torch.from_numpy(np.array(sheet)).float()[None] / 255
