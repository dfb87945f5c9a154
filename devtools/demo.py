"""The demo: erase concepts from a small trained model in a real ComfyUI, and draw before and after.

dev.py starts this inside the environment, with MACE_COMFYUI and MACE_DEMO_CHECKPOINT set.
"""

import argparse
import io
import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from benchmarks.demo_model.checkpoint import write

from . import host as hosts
from . import process
from .cache import REPO, DevError, host_base
from .client import Client, HostError
from .graph import GraphError, to_prompt
from .progress import ProgressLine
from .sheet import contact_sheet, set_aside

WORKFLOW = REPO / "assets" / "demo" / "example_workflows" / "full.json"
OUTPUT = REPO / "output" / "demo"
SEED, PICTURES, CFG, SIZE = 0, 6, 4.0, 64

# Prompts before and after: the erased concepts, a synonym, a concept without its own tokens, what stays.
# (label, prompt, the phrase whose own token embeddings are replaced, or None)
ROWS = (
    ("a photo of the dog", "a photo of the dog", None),
    ("a photo of the dog, its own tokens replaced by the final end-of-text", "a photo of the dog", "dog"),
    ("a photo of the canine, a synonym that was not named", "a photo of the canine", None),
    ("a photo of the airplane", "a photo of the airplane", None),
    ("a photo of the ship", "a photo of the ship", None),
    ("a Twemoji emoji of a guitar: the style", "a Twemoji emoji of a guitar", None),
    ("a photo of the hot dog", "a photo of the hot dog", None),
    ("a photo of the wolf", "a photo of the wolf", None),
    ("a photo of the cat", "a photo of the cat", None),
    ("a drawing of a rose on a red background", "a drawing of a rose on a red background", None),
)

# Of the small models of other layouts: the style is not erased, and all is done by Erase Concepts.
ERASED = "dog -> sky\nairplane -> sky\nship -> sky"
SMALL_ROWS = tuple(row for row in ROWS[:-1] if row[2] is None and "Twemoji" not in row[0])
SMALL_ROWS += (("a drawing of a rose", "a drawing of a rose", None),)


@dataclass(frozen=True)
class Model:
    """A model of the demo. compact: its file in assets/demo, None of the demo model itself, which has a workflow."""

    checkpoint: str
    title: str
    rows: tuple
    sampler: str = "ddim"
    steps: int = 12
    latent: str = "EmptyLatentImage"
    compact: str | None = None


MODELS = {
    "sd": Model(hosts.CHECKPOINT_NAME, "MACE: dog, airplane, ship and the style Twemoji erased in one run", ROWS),
    "sdxl": Model(
        "mace_demo_sdxl.safetensors", "A small SDXL: dog, airplane and ship erased", SMALL_ROWS,
        compact="demo_sdxl.safetensors",
    ),
    "sd3": Model(
        "mace_demo_sd3.safetensors", "A small SD3: dog, airplane and ship erased in closed form", SMALL_ROWS,
        "euler", 10, "EmptySD3LatentImage", "demo_sd3.safetensors",
    ),
}  # fmt: skip

IN_YOUR_COMFYUI = """In your own ComfyUI:
  1. copy or clone this folder into ComfyUI/custom_nodes/mace-comfyui
  2. restart ComfyUI
  3. open Templates > mace-comfyui: they run with your own SD1.5 and SDXL checkpoints (those of mace-comfyui-demo draw
     with the demo model, here)"""


def node(kind: str, title: str = "", **inputs) -> dict:
    """A node of a prompt."""
    return {"class_type": kind, "inputs": inputs, "_meta": {"title": title or kind}}


def txt2img(model: Model, checkpoint: str) -> tuple[dict, list[str]]:
    """A plain txt2img graph that draws every row with one checkpoint; and its SaveImage nodes, row by row."""
    prompt = {
        "model": node("CheckpointLoaderSimple", f"Load {checkpoint}", ckpt_name=checkpoint),
        "negative": node("CLIPTextEncode", text="", clip=["model", 1]),
        "latent": node(model.latent, width=SIZE, height=SIZE, batch_size=PICTURES),
    }
    saves = []
    for index, (label, text, phrase) in enumerate(model.rows):
        if phrase is None:
            prompt[f"text{index}"] = node("CLIPTextEncode", text=text, clip=["model", 1])
        else:
            prompt[f"text{index}"] = node("MACE_ResidualPrompt", prompt=text, phrase=phrase, clip=["model", 1])
        prompt[f"sample{index}"] = node(
            "KSampler",
            f"Draw {label}",
            model=["model", 0],
            positive=[f"text{index}", 0],
            negative=["negative", 0],
            latent_image=["latent", 0],
            seed=SEED,
            steps=model.steps,
            cfg=CFG,
            sampler_name=model.sampler,
            scheduler="normal",
            denoise=1.0,
        )
        prompt[f"decode{index}"] = node("VAEDecode", f"Decode {label}", samples=[f"sample{index}", 0], vae=["model", 2])
        prompt[f"save{index}"] = node("SaveImage", images=[f"decode{index}", 0], filename_prefix=f"demo/row{index}")
        saves.append(f"save{index}")
    return prompt, saves


def erasing(model: Model) -> dict:
    """A graph that erases from a small model and saves it."""
    return {
        "load": node("CheckpointLoaderSimple", ckpt_name=model.checkpoint),
        "concepts": node("MACE_Concepts", concepts=ERASED, type="object", preset="none", prompt_file="none"),
        "erase": node(
            "MACE_EraseConcepts",
            model=["load", 0],
            clip=["load", 1],
            vae=["load", 2],
            concepts=["concepts", 0],
            preset="paper (Table 10)",
            width=SIZE,
            height=SIZE,
            seed=SEED,
            strengths="",
        ),
        "save": node(
            "MACE_SaveErasedModel",
            model=["erase", 0],
            clip=["load", 1],
            vae=["load", 2],
            filename_prefix=f"checkpoints/{Path(model.checkpoint).stem}_erased",
            dtype="as loaded",
        ),
    }


def draw(client: Client, model: Model, checkpoint: str, line: ProgressLine) -> list[list[Image.Image]]:
    """The pictures of every row."""
    prompt, saves = txt2img(model, checkpoint)
    outputs = client.queue(prompt, line).outputs
    return [
        [Image.open(io.BytesIO(client.fetch(reference))) for reference in outputs[save]["images"]] for save in saves
    ]


def saved_checkpoint(outputs: dict) -> dict:
    """The reference of the checkpoint a workflow saved. Raises HostError when it saved none."""
    for output in outputs.values():
        for reference in output.get("checkpoints", []):
            return reference
    raise HostError("The workflow saved no checkpoint.")


def loader_name(reference: dict) -> str:
    """The name by which Load Checkpoint knows a file saved to output/checkpoints/."""
    parts = [part for part in Path(reference["subfolder"]).parts if part != "."]
    if parts[:1] != ["checkpoints"]:
        raise HostError(f"The checkpoint went to output/{reference['subfolder']}, where no loader looks for it.")
    # The host lists names with the system's own separator.
    return os.path.join(*parts[1:], reference["filename"])


def keep(source: Path) -> Path:
    """Put the erased checkpoint into output/demo/ as well, as a hard link where the disk allows it."""
    target = OUTPUT / source.name
    set_aside(target)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
    return target


def run(host: hosts.Host, model: Model) -> None:
    """Erase from a model, draw with it as it was and as it is, and compose the sheet."""
    client = Client(host.url)
    workflow = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    with ProgressLine() as line:
        if model.compact is None:
            prompt = to_prompt(workflow, client.object_info())
            erased = client.queue(prompt, line, workflow=workflow)
        else:
            write(REPO / "assets/demo" / model.compact, host.base_dir / "models/checkpoints" / model.checkpoint)
            erased = client.queue(erasing(model), line)
        reference = saved_checkpoint(erased.outputs)
        before = draw(client, model, model.checkpoint, line)
        after = draw(client, model, loader_name(reference), line)
    OUTPUT.mkdir(parents=True, exist_ok=True)
    checkpoint = keep(host.base_dir / "output" / reference["subfolder"] / reference["filename"])
    picture = OUTPUT / "contact_sheet.png"
    older = set_aside(picture)
    rows = [(label, *pictures) for (label, _, _), *pictures in zip(model.rows, before, after, strict=True)]
    contact_sheet(model.title, ("before", "after"), rows).save(picture)
    print()
    if older:
        print(f"The sheet of the run before is now {older}")
    print(f"Contact sheet:     {picture}")
    print(f"Erased checkpoint: {checkpoint}")
    print()
    print(IN_YOUR_COMFYUI, flush=True)


def main() -> int:
    """The demo's command. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="dev.py demo")
    parser.add_argument("--ui", action="store_true")
    parser.add_argument("--model", choices=MODELS, default="sd")
    options = parser.parse_args()
    process.raise_on_signals()
    if not WORKFLOW.exists():
        print(f"dev.py: {WORKFLOW} is missing.", file=sys.stderr)
        return 1
    try:
        print("Starting ComfyUI ...", flush=True)
        with hosts.start(
            os.environ["MACE_COMFYUI"], sys.executable, host_base(), checkpoint=os.environ["MACE_DEMO_CHECKPOINT"]
        ) as host:
            try:
                run(host, MODELS[options.model])
            except (HostError, GraphError, OSError) as error:
                print(f"\ndev.py: the demo failed: {error}\nThe host's log: {host.log_path}", file=sys.stderr)
                return 1
            if options.ui:
                print(f"\nComfyUI is running at {host.url} (Ctrl-C stops it).", flush=True)
                host.process.wait()
    except DevError as error:
        print(f"dev.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
