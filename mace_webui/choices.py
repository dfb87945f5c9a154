"""What is chosen in the tab, as the headless command takes it, and what is shown of a run. Standard library only."""

import html
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .job import PACK

TYPES = ("object", "celebrity", "style", "explicit")
PAPER = "paper (Table 10)"


@dataclass(frozen=True)
class WebUI:
    """What the tab needs of the web UI it is in. checkpoints: the names that can be chosen.  file_of: a name's file.
    models, loras: the folders where results land.  refresh: look for new checkpoints.  comfyui: a ComfyUI folder to
    use, "" for the pinned one.  draw(name, prompt, seed, side): a checkpoint's picture by the web UI's own sampler."""

    checkpoints: Callable[[], list]
    file_of: Callable[[str], Path]
    models: Callable[[], Path]
    loras: Callable[[], Path]
    refresh: Callable[[], None]
    comfyui: Callable[[], str]
    draw: Callable[[str, str, int, int], object]


def presets() -> list:
    """The names of the presets, in the order that Erase Concepts offers them."""
    folder = PACK / "mace" / "presets"
    files = ("mace_demo.json", "mace_demo_sd3.json", "mace_demo_lists.json", "paper_released.json")
    return [PAPER, *(json.loads((folder / name).read_text(encoding="utf-8"))["name"] for name in files)]


def free_name(folder: Path, name: str) -> Path:
    """A file of that name in a folder that is not there yet, with a number where it is."""
    stem = re.sub(r'[\\/:*?"<>|\x00-\x1f]+', "_", name).strip(" .") or "erased"
    stem = stem[: -len(".safetensors")] if stem.endswith(".safetensors") else stem
    path, number = folder / f"{stem}.safetensors", 2
    while path.exists():
        path, number = folder / f"{stem}_{number}.safetensors", number + 1
    return path


def arguments_of(webui: WebUI, chosen: dict) -> list:
    """The headless command of what is chosen. Raises ValueError, in words, for what cannot be."""
    if not chosen["checkpoint"]:
        raise ValueError("choose a checkpoint")
    source = Path(webui.file_of(chosen["checkpoint"]))
    name = chosen["name"].strip() or f"{source.stem}_erased"
    arguments = [
        "erase", "--model", source, "--concepts", "-", "--type", chosen["type"], "--preset", chosen["preset"],
        "--gentle-strong", chosen["gentle_strong"], "--seed", int(chosen["seed"]), "--width", int(chosen["side"]),
        "--height", int(chosen["side"]), "--out", free_name(Path(webui.models()), name),
    ]  # fmt: skip
    strengths = [line for line in chosen["strengths"].splitlines() if line.strip()]
    if strengths:
        arguments += ["--strengths", *strengths]
    if chosen["aliases"]:
        arguments.append("--aliases")
    if chosen["lora"]:
        arguments += ["--lora", free_name(Path(webui.loras()), name), "--rank", int(chosen["rank"])]
    return arguments


def compared(webui: WebUI, report: dict | None) -> tuple:
    """The names of the checkpoints before and after the last run. Raises ValueError, in words, where there is none."""
    if report is None or report["exit_code"] or "out" not in report["files"]:
        raise ValueError("erase something first: its checkpoint is drawn beside the one it was made of")
    named = {Path(webui.file_of(name)).resolve(): name for name in webui.checkpoints()}
    found = tuple(named.get(Path(path).resolve()) for path in (report["model"], report["files"]["out"]))
    if None in found:
        raise ValueError("one of the two checkpoints is no longer in its folder")
    return found


def side_of(report: dict, asked: float | None) -> int:
    """The side in pixels of pictures before and after: as asked for, or what the last run's model was made for."""
    return int(asked or report["native_side"])


def bar(state) -> str:
    """How far it is, as HTML."""
    if not state.running:
        return ""
    share = f'value="{state.value}" max="{state.maximum}"' if state.maximum else ""
    count = f" {state.value:g}/{state.maximum:g}" if state.maximum else ""
    return f'<progress class="mace-progress" {share} style="width:100%"></progress> {html.escape(state.stage)}{count}'


def ended(state) -> str:
    """How it ended, in Markdown."""
    report = state.report
    # A process that has said how it ended is still there for a moment, and no other can start.
    if report is None or state.running:
        return "**Running** ..." if state.running else ""
    if report["exit_code"]:
        return f"**{report['status']}**: {report.get('error') or ''}"
    files = "\n".join(f"- `{path}`" for path in report["files"].values())
    return f"**done** in {report['total_seconds']:.0f} s\n\n{files}"
