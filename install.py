"""Reports what MACE for ComfyUI finds and what is missing. Installs nothing, opens no connection.

ComfyUI-Manager runs this file after installing the pack; it can also be run by hand with ComfyUI's Python.
"""

import importlib.metadata
import importlib.util
import sys
from pathlib import Path

PYTHON = (3, 10)
# The ComfyUI the pack is tested with.
TESTED = (0, 30)
# Packages and where they come from.
NEEDED = (
    ("torch", "comes with ComfyUI"),
    ("safetensors", "comes with ComfyUI"),
    ("numpy", "comes with ComfyUI"),
)
# What Mask Concept's back-ends import, and the packages that bring it. The first two are installed without what they
# ask for: groundingdino-py pins an old supervision, which it needs for drawing alone.
ALONE = {"groundingdino": "groundingdino-py", "segment_anything": "segment-anything"}
BESIDE = {
    "timm": "timm",
    "addict": "addict",
    "yapf": "yapf",
    "cv2": "opencv-python-headless",
    "matplotlib": "matplotlib",
    "pycocotools": "pycocotools",
    "transformers": "transformers",
}
GROUNDED, TRANSFORMERS = "GroundingDINO + SAM", "transformers"
IMPORTED = {GROUNDED: (*ALONE, *BESIDE), TRANSFORMERS: ("transformers",)}
MASK_PACKAGES = "requirements-masks.txt says how"
DINO_FILE, SAM_FILE, BERT = "groundingdino_swint_ogc.pth", "sam_vit_b_01ec64.pth", "bert-base-uncased"
WEIGHTS = (".pth", ".pt", ".safetensors")


def missing_packages(backend: str) -> str | None:
    """What to run so that a back-end of Mask Concept finds its packages, or None when it does."""
    lacking = [name for name in IMPORTED[backend] if importlib.util.find_spec(name) is None]
    python = f'"{sys.executable}"' if " " in sys.executable else sys.executable
    commands = []
    for options, packages in (("--no-deps ", ALONE), ("", BESIDE)):
        names = [packages[name] for name in lacking if name in packages]
        if names:
            commands.append(f"{python} -m pip install {options}{' '.join(names)}")
    return f"run {', then '.join(commands)}, and restart ComfyUI" if commands else None


def _holds(folder: Path, *endings: str) -> bool:
    return folder.is_dir() and any(path.is_file() and path.name.endswith(endings) for path in folder.iterdir())


def _transformers_folders(folders: list[Path]) -> bool:
    return any(path.is_dir() and any(path.glob("*/config.json")) for path in folders)


def mask_backends(models: Path | None) -> list[str]:
    """A line for each back-end of Mask Concept: ready, or the next step. models: ComfyUI's models folder, if known."""
    lines = ["attention, external mask, boxes, whole image: ready, they need nothing"]
    steps = {GROUNDED: missing_packages(GROUNDED), TRANSFORMERS: missing_packages(TRANSFORMERS)}
    steps["SAM3 Detect"] = None
    if models is None:
        files = dict.fromkeys(steps, "the packages are there; the files cannot be looked for outside ComfyUI")
        files["SAM3 Detect"] = "ComfyUI's own node: put a SAM3 checkpoint into models/checkpoints"
    else:
        dino = [models / "grounding-dino", models / "groundingdino"]
        bert = [models / name / BERT for name in ("", "text_encoders", "clip", "grounding-dino", "groundingdino")]
        files = dict.fromkeys(steps)
        if not any(_holds(folder, *WEIGHTS) for folder in dino):
            files[GROUNDED] = f"put {DINO_FILE} into {dino[0]}"
        elif not any((folder / "config.json").is_file() for folder in bert):
            files[GROUNDED] = f"put the files of {BERT} (config.json, model.safetensors, tokenizer.json) into {bert[0]}"
        elif not _holds(models / "sams", *WEIGHTS):
            files[GROUNDED] = f"put {SAM_FILE} into {models / 'sams'}; without it boxes are filled"
        if not _transformers_folders(dino):
            files[TRANSFORMERS] = f"put a folder such as grounding-dino-tiny, with config.json, into {dino[0]}"
        elif not _transformers_folders([models / "sams"]):
            files[TRANSFORMERS] = (
                f"put a folder such as sam-vit-base or sam2.1-hiera-small, with config.json, into {models / 'sams'}; "
                "without it boxes are filled"
            )
        sam3 = models / "checkpoints"
        if not sam3.is_dir() or not any("sam3" in path.name.lower() for path in sam3.rglob("*.safetensors")):
            files["SAM3 Detect"] = f"ComfyUI's own node: put a SAM3 checkpoint into {sam3}"
    for backend in steps:
        step = steps[backend] or files[backend]
        lines.append(f"{backend}: {'ready' if step is None else step}")
    return lines


def comfyui_version(pack: Path) -> str | None:
    """The version of the ComfyUI whose custom_nodes folder the pack is in, or None outside one."""
    found = pack.parent.parent / "comfyui_version.py"
    if pack.parent.name != "custom_nodes" or not found.is_file():
        return None
    for line in found.read_text(encoding="utf-8").splitlines():
        if line.startswith("__version__"):
            return line.split("=")[1].strip().strip("\"'")
    return None


def report(pack: Path) -> tuple[list[str], bool]:
    """(lines, whether all that is needed is there)."""
    lines, complete = [], True
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info >= PYTHON:
        lines.append(f"Python {version}: fine")
    else:
        lines.append(f"Python {version}: too old, MACE needs {'.'.join(map(str, PYTHON))} or later")
        complete = False
    for name, origin in NEEDED:
        try:
            lines.append(f"{name} {importlib.metadata.version(name)}: fine")
        except importlib.metadata.PackageNotFoundError:
            lines.append(f"{name}: missing; it {origin}: run this with ComfyUI's own Python")
            complete = False
    host = comfyui_version(pack)
    if host is None:
        lines.append("ComfyUI: this folder is not inside ComfyUI's custom_nodes; put it there to use the nodes")
    elif tuple(int(part) for part in host.split(".")[:2] if part.isdigit()) < TESTED:
        tested = ".".join(map(str, TESTED))
        lines.append(
            f"ComfyUI {host}: older than {tested}, which the pack is tested with; update it if nodes are missing"
        )
    else:
        lines.append(f"ComfyUI {host}: fine")
    models = None if host is None else pack.parent.parent / "models"
    lines.append("Mask Concept's back-ends (all but the first line are optional):")
    lines += [f"  {line}" for line in mask_backends(models)]
    return lines, complete


if __name__ == "__main__":
    found, complete = report(Path(__file__).absolute().parent)
    print("MACE for ComfyUI\n  " + "\n  ".join(found))
    print("Ready. Restart ComfyUI to load the nodes." if complete else "Not ready: see the lines above.")
    sys.exit(0 if complete else 1)
