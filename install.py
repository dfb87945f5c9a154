"""Reports what MACE for ComfyUI finds and what is missing. Installs nothing, opens no connection.

ComfyUI-Manager runs this file after installing the pack; it can also be run by hand with ComfyUI's Python.
"""

import importlib.metadata
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
    return lines, complete


if __name__ == "__main__":
    found, complete = report(Path(__file__).absolute().parent)
    print("MACE for ComfyUI\n  " + "\n  ".join(found))
    print("Ready. Restart ComfyUI to load the nodes." if complete else "Not ready: see the lines above.")
    sys.exit(0 if complete else 1)
