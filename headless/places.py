"""Which ComfyUI is used, with which Python. Standard library only, since it may be neither's Python that runs this."""

import importlib.util
import os
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from .errors import BAD_INPUT, FAILED, STOPPED, BadInput

PACK = Path(__file__).absolute().parent.parent
# What tells that this Python is one that runs ComfyUI.
NEEDED = ("torch", "safetensors", "pydantic", "tqdm")


@dataclass(frozen=True)
class Place:
    """comfy: the ComfyUI folder.  base: its base directory, None for its own."""

    comfy: Path
    base: Path | None = None


def find() -> Place | None:
    """The ComfyUI that is named (dev.py's, COMFYUI_PATH) or that the pack lies in; None where the pinned one is to be
    made. Raises BadInput for a COMFYUI_PATH that is none.
    """
    given = os.environ.get("MACE_COMFYUI")
    if given:
        return Place(Path(given), _base_of_pinned(Path(given)))
    given = os.environ.get("COMFYUI_PATH")
    if given:
        comfy = Path(given).expanduser().absolute()
        if not _is_comfy(comfy):
            raise BadInput(f"COMFYUI_PATH is {comfy}, which is not a ComfyUI folder (no main.py and comfy/ in it)")
        return Place(comfy)
    if PACK.parent.name == "custom_nodes" and _is_comfy(PACK.parent.parent):
        return Place(PACK.parent.parent)
    return None


def _is_comfy(folder: Path) -> bool:
    return (folder / "main.py").is_file() and (folder / "comfy").is_dir()


def _devtools():
    """dev.py's parts, or None: the registry's archive has none."""
    try:
        from devtools import cache, environment, process
    except ImportError:
        return None
    return cache, environment, process


def _base_of_pinned(comfy: Path) -> Path | None:
    """The base directory of dev.py's own ComfyUI, whose folder holds no models; None of any other."""
    tools = _devtools()
    if tools is None or tools[0].cache_root() not in comfy.parents:
        return None
    return tools[0].host_base()


def start(arguments: list[str]) -> int:
    """The whole command: in this Python where it is one that runs ComfyUI, else in dev.py's. Returns the exit code."""
    try:
        place = find()
    except BadInput as error:
        return _refused(error, BAD_INPUT)
    able = all(importlib.util.find_spec(name) for name in NEEDED)
    if place is not None and able:
        from .cli import main, open_host

        return main(arguments, partial(open_host, place))
    tools = _devtools()
    if tools is None:
        what = f"this Python ({sys.executable}) has no torch" if place else "there is no ComfyUI"
        return _refused(
            f"{what}: put the pack into ComfyUI/custom_nodes or set COMFYUI_PATH, and start this with ComfyUI's Python",
            BAD_INPUT,
        )
    return _elsewhere(arguments, *tools)


def _elsewhere(arguments: list[str], cache, environment, process) -> int:
    """The command in the environment that dev.py makes, or in the Python of the ComfyUI that is named."""
    process.raise_on_signals()
    try:
        made = environment.prepare(lambda line: print(line, file=sys.stderr, flush=True))
        call = process.call_interactive if sys.stdin and sys.stdin.isatty() else process.call
        # By the folder, so that it is found from wherever this was started.
        return call([made.python, PACK / "headless", *arguments], env=made.variables())
    except cache.DevError as error:
        return _refused(error, FAILED)
    except KeyboardInterrupt:
        return STOPPED


def _refused(why, code: int) -> int:
    print(f"headless: {why}", file=sys.stderr)
    return code
