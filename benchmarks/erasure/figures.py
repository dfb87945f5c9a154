"""Pictures for docs/results.md: attention maps word by word (Figs. 2a, 10), and contact sheets of the tasks."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from benchmarks.erasure.bench import STYLE, Bench
from benchmarks.erasure.methods import BASE, FUSED, REFINED, Subject
from benchmarks.erasure.questions import SEED
from benchmarks.erasure.records import Records
from benchmarks.erasure.tasks import TEN, Plan
from devtools.cache import REPO
from devtools.sheet import contact_sheet

FOLDER = REPO / "docs" / "figures"
CELL, LABEL = 72, 20
PROMPT = "a photo of the dog"
TOKENS = ("start", *PROMPT.split(), "end", "padding")
PICTURES = 4


def maps(bench: Bench, records: Records, plan: Plan) -> None:
    """Figs. 2a and 10: where each word of a prompt is looked for in pictures of the concept, before and after."""
    if not plan.wants("dog") or "dog" in records:
        return
    subject = Subject(bench, ["dog"])
    subject.trained()
    latents = subject.work.images[0].latents
    module = bench.host.module("nodes.host.model.attention_maps")
    rows = []
    for method in (BASE, REFINED, FUSED):
        model, _ = subject.model(method)
        with torch.inference_mode():
            context = bench.studio.encoded(PROMPT)
            own = [
                module.concept_maps(model, latents, context, [place], None, "figure").mean(dim=0)
                for place in range(len(TOKENS) - 1)
            ]
            rest = list(range(len(TOKENS) - 1, len(context)))
            own.append(module.concept_maps(model, latents, context, rest, None, "figure").mean(dim=0))
        rows.append(torch.stack(own))
    FOLDER.mkdir(parents=True, exist_ok=True)
    _map_table(("base model", "refined", "MACE (fused)"), rows).save(FOLDER / "attention_maps.png", optimize=True)
    records.add("dog", erased="dog", tokens=TOKENS, file="docs/figures/attention_maps.png")
    print("maps", flush=True)


def _map_table(heads: Sequence[str], rows: Sequence[Tensor]) -> Image.Image:
    """Maps [tokens, h, w] of each model as a picture: a column a token, brightness on one scale in a column."""
    left, font = 130, ImageFont.load_default(size=16)
    sheet = Image.new("RGB", (left + len(TOKENS) * (CELL + 6), LABEL + 8 + len(rows) * (CELL + 6)), "white")
    draw = ImageDraw.Draw(sheet)
    brightest = torch.stack(list(rows)).amax(dim=(0, 2, 3))
    for column, token in enumerate(TOKENS):
        draw.text((left + column * (CELL + 6), 4), token, "black", font)
    for place, (head, row) in enumerate(zip(heads, rows, strict=True)):
        y = LABEL + 8 + place * (CELL + 6)
        draw.text((4, y + CELL // 2 - 10), head, "black", font)
        for column, found in enumerate(row):
            grey = Image.fromarray((found / brightest[column] * 255).round().to(torch.uint8).numpy())
            shown = ImageOps.colorize(
                grey.resize((CELL, CELL), Image.Resampling.BICUBIC), "#10104a", "#ffe97a", "#c03a5b"
            )
            sheet.paste(shown, (left + column * (CELL + 6), y))
    return sheet


def sheets(bench: Bench, records: Records, plan: Plan) -> None:
    """Contact sheets: the same noise before and after, for single objects, ten concepts and a style."""
    synonyms = bench.synonyms
    neighbours = {"dog": ("wolf", "hot dog"), "ship": ("sailboat", "anchor"), "bird": ("eagle", "duck")}
    plans = {}
    for name, near in neighbours.items():
        words = [name, *synonyms[name][:1], *near]
        plans[name] = (Subject(bench, [name]), [f"a photo of the {word}" for word in words])
    words = [*TEN[:4], "dog", "cat", "wolf", "taxi", "rose"]
    prompts = [f"an illustration of the {word}" for word in words] + [f"a {STYLE} emoji of a guitar"]
    plans["ten"] = (Subject(bench, TEN, style=True), prompts)
    prompts = [f"a {STYLE} emoji of a {word}" for word in ("cat", "rose", "taxi")] + ["a photo of the cat"]
    plans[STYLE] = (Subject(bench, (), style=True), prompts)
    for name, (subject, asked_for) in plans.items():
        if name in records or not plan.wants(name):
            continue
        title = f"Erased: {', '.join(subject.objects) or STYLE}" + (f", {STYLE}" if name == "ten" else "")
        model, _ = subject.model(FUSED)
        rows = [
            (prompt, _pictures(bench, bench.model, prompt), _pictures(bench, model, prompt)) for prompt in asked_for
        ]
        FOLDER.mkdir(parents=True, exist_ok=True)
        path = FOLDER / f"sheet_{name}.png"
        contact_sheet(title, ("base model", "erased (MACE)"), rows).quantize(256).save(path, optimize=True)
        records.add(name, erased=name, file=str(Path(path).relative_to(REPO).as_posix()), prompts=asked_for)
        print("sheet", path.name, flush=True)


def _pictures(bench: Bench, model, prompt: str) -> list[Image.Image]:
    """PICTURES pictures of a prompt."""
    seeds = [SEED + 100 * k for k in range(PICTURES)]
    drawn = bench.studio.draw(model, [prompt] * PICTURES, seeds)
    return [Image.fromarray((p.movedim(0, -1) * 255).round().to(torch.uint8).numpy()) for p in drawn]


FIGURES = {"maps": maps, "sheets": sheets}
