"""Reports what MACE for ComfyUI finds and what is missing. Installs nothing, opens no connection.

ComfyUI-Manager runs this file after installing the pack; it can also be run by hand with ComfyUI's Python.
"""

import importlib.metadata
import importlib.util
import json
import os
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
    ("pydantic", "comes with ComfyUI"),
    ("pyyaml", "comes with ComfyUI"),
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
# What transformers has since 4.56, and what config.json calls these models.
MODULES = ("grounding_dino", "mm_grounding_dino", "sam", "sam2")
DINO_TYPES, SAM_TYPES = ("grounding-dino", "mm-grounding-dino"), ("sam", "sam2", "sam2_video")
DINO_FILE, SAM_FILE, BERT = "groundingdino_swint_ogc.pth", "sam_vit_b_01ec64.pth", "bert-base-uncased"
WEIGHTS = (".pth", ".pt", ".safetensors")
# The files of a folder, of each choice one.
CONFIG, WORDS = ("config.json",), ("tokenizer.json", "vocab.txt")
MOST_CONFIG = 16 << 20
BERT_FILES = (CONFIG, ("model.safetensors", "pytorch_model.bin"), WORDS)
SAM_FILES = (
    CONFIG,
    ("model.safetensors", "model.safetensors.index.json"),
    ("preprocessor_config.json", "processor_config.json"),
)
DINO_FILES = (*SAM_FILES, WORDS)


def missing_packages(backend: str) -> str | None:
    """What to run so that a back-end of Mask Concept finds its packages, or None when it does."""
    lacking = [name for name in IMPORTED[backend] if not _is_there(name)]
    python = f'"{sys.executable}"' if " " in sys.executable else sys.executable
    commands = []
    for options, packages in (("--no-deps ", ALONE), ("", BESIDE)):
        names = [packages[name] for name in lacking if name in packages]
        if names:
            commands.append(f"{python} -m pip install {options}{' '.join(names)}")
    if commands:
        return f"run {', then '.join(commands)}, and restart ComfyUI"
    return _missing_of_transformers(python) if backend == TRANSFORMERS else None


def _is_there(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):  # another pack put something in its place
        return False


def _missing_of_transformers(python: str) -> str | None:
    """What the installed transformers lacks. It is not imported, which takes seconds."""
    models = [Path(folder, "models") for folder in importlib.util.find_spec("transformers").submodule_search_locations]
    lacking = [name for name in MODULES if not any((folder / name).is_dir() for folder in models)]
    if lacking:
        return (
            f"the installed transformers has no {lacking[0]}, version 4.56 or newer is needed: run {python} -m pip "
            "install --upgrade transformers, and restart ComfyUI"
        )
    if not _is_there("torchvision"):
        # Without its version pip would take the newest, and another torch with it.
        return "torchvision is not installed, which belongs to ComfyUI: install the one for the torch that is there"
    return None


def lacking_files(folder: Path, needed: tuple) -> list[str]:
    """Of each choice in `needed` that the folder has no file of: the choice, in words."""
    return [" or ".join(names) for names in needed if not any(os.path.isfile(folder / name) for name in names)]


def read_text(path: Path) -> str:
    """The text of a small file. Raises FileNotFoundError where there is none, ValueError where it cannot be read."""
    try:
        size = path.stat().st_size
        # Neither a pipe, which would be waited for, nor weights under another name.
        if not path.is_file() or size > MOST_CONFIG:
            raise ValueError(f"it is no file of up to {MOST_CONFIG >> 20} MB")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from None


def read_config(path: Path) -> dict:
    """The settings in a JSON file. Raises as `read_text`, and ValueError where they cannot be read."""
    try:
        settings = json.loads(read_text(path))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(settings, dict):
        raise ValueError("it holds no settings")
    return settings


def model_type(folder: Path) -> str | None:
    """What a folder's config.json says it is, or None where it says nothing that can be read."""
    try:
        kind = read_config(folder / CONFIG[0]).get("model_type")
    except (FileNotFoundError, ValueError):
        return None
    return kind if isinstance(kind, str) else None


def _inside(folder: Path) -> list[Path]:
    """What lies in a folder; nothing where it cannot be read."""
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _holds(folder: Path, *endings: str) -> bool:
    return any(os.path.isfile(path) and path.name.endswith(endings) for path in _inside(folder))


def _folder_step(places: list[Path], types: tuple, needed: tuple, example: str) -> str | None:
    """What to do so that one of the places holds a whole folder of these types, or None when one does."""
    folders = [path for place in places for path in _inside(place)]
    ours = [path for path in folders if model_type(path) in types]
    if not ours:
        return f"put a folder such as {example}, with config.json, into {places[0]}"
    steps = [f"put {', '.join(lacking)} into {path}" for path in ours if (lacking := lacking_files(path, needed))]
    return steps[0] if len(steps) == len(ours) else None


def _bert_step(places: list[Path]) -> str | None:
    """What to do so that one of the places is a whole BERT folder, or None when one is."""
    lacking = {place: lacking_files(place, BERT_FILES) for place in places if place.is_dir()}
    if not lacking:
        return f"put the files of {BERT} ({', '.join(names[0] for names in BERT_FILES)}) into {places[0]}"
    steps = [f"put {', '.join(files)} into {place}" for place, files in lacking.items() if files]
    return steps[0] if len(steps) == len(lacking) else None


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
        filled = "; without it boxes are filled"
        if not any(_holds(folder, *WEIGHTS) for folder in dino):
            files[GROUNDED] = f"put {DINO_FILE} into {dino[0]}"
        elif step := _bert_step(bert):
            files[GROUNDED] = step
        elif not _holds(models / "sams", *WEIGHTS):
            files[GROUNDED] = f"put {SAM_FILE} into {models / 'sams'}{filled}"
        if step := _folder_step(dino, DINO_TYPES, DINO_FILES, "grounding-dino-tiny"):
            files[TRANSFORMERS] = step
        elif step := _folder_step([models / "sams"], SAM_TYPES, SAM_FILES, "sam-vit-base or sam2.1-hiera-small"):
            files[TRANSFORMERS] = f"{step}{filled}"
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


def is_older(version: str) -> bool:
    """Whether a version of ComfyUI is older than the one that the pack is tested with."""
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) < TESTED


def too_old(why: Exception) -> str | None:
    """What to say where this runs in a ComfyUI older than the pack is tested with, which lacks what `why` tells of.

    None in one that is new enough, where it is a fault.
    """
    try:
        from comfyui_version import __version__ as version
    except ImportError:  # before there was such a file
        version = "0"
    if not is_older(version):
        return None
    return (
        f"MACE needs ComfyUI {'.'.join(map(str, TESTED))} or later, and this one is "
        f"{'older' if version == '0' else version} ({why}): update ComfyUI. None of its nodes are here."
    )


def webui_report(pack: Path) -> list[str]:
    """Lines for A1111, Forge and their kin, which run this file too: what erases there is a process of its own."""
    version = ".".join(map(str, sys.version_info[:3]))
    lines = [
        f"Python {version}: {'fine' if sys.version_info >= PYTHON else 'too old for what erases, which needs 3.10'}"
    ]
    whole = all((pack / name).exists() for name in ("scripts/mace_erase.py", "devtools/environment.py"))
    lines.append(
        "the tab Erase concepts: its first run makes an environment of its own (3 GB to download, 7 GB on the disk), "
        "or uses the ComfyUI that Settings > Erase concepts names"
        if whole
        else "the tab Erase concepts is in the repository alone: clone that into extensions/"
    )
    return lines


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
    elif is_older(host):
        tested = ".".join(map(str, TESTED))
        lines.append(
            f"ComfyUI {host}: older than {tested}, which the pack is tested with; update it if nodes are missing"
        )
    else:
        lines.append(f"ComfyUI {host}: fine")
    models = None if host is None else pack.parent.parent / "models"
    where = "" if models is None else "; folders of extra_model_paths.yaml count in ComfyUI, and are not looked at here"
    lines.append(f"Mask Concept's back-ends (all but the first line are optional{where}):")
    lines += [f"  {line}" for line in mask_backends(models)]
    return lines, complete


if __name__ == "__main__":
    pack = Path(__file__).absolute().parent
    if pack.parent.name == "extensions":
        print("MACE, in a web UI\n  " + "\n  ".join(webui_report(pack)))
        sys.exit(0)
    found, complete = report(pack)
    print("MACE for ComfyUI\n  " + "\n  ".join(found))
    print("Ready. Restart ComfyUI to load the nodes." if complete else "Not ready: see the lines above.")
    sys.exit(0 if complete else 1)
