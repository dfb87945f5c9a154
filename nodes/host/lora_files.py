"""Writing one LoRA for other programs, in their layouts."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

from ...mace import __version__
from ...mace.concepts.concept import normalised
from ...mace.formats.lora_layouts import Base, to_comfyui, to_kohya, to_peft
from ...mace.method.lora import Lora
from . import files
from .prefixes import expanded

COMFYUI, KOHYA, PEFT = FORMATS = ("ComfyUI", "kohya (A1111, Forge)", "PEFT")
ADAPTER, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def slug(phrase: str) -> str:
    """A phrase as a part of a file name: letters and digits of any script, the rest as one underscore.

    At most 40 bytes, for a name has the prefix and a counter too.
    """
    name = re.sub(r"\W+", "_", normalised(phrase)).encode()[:40].decode(errors="ignore")
    return name.strip("_") or "concept"


def write_lora(
    layout: str,
    prefix: str,
    lora: Lora,
    blocks: tuple[int, ...] | None,
    base: Base | None,
    description: str,
    metadata: Mapping[str, str],
) -> Path:
    """Write one LoRA in one of FORMATS under output/<prefix>_<counter>_; returns the file or PEFT's folder.

    blocks, base: of the UNet, None of another family (see `mace.formats.lora_layouts`).  metadata: what the file has
    besides the layout's own.
    Raises ValueError for a LoRA that the layout cannot hold and as `files.save_safetensors` does.
    """
    prefix = expanded(prefix)
    title = Path(prefix).name
    common = {"mace.version": __version__, **metadata}
    if layout == PEFT:
        tensors, config = to_peft(lora, blocks)
        texts = {CONFIG: json.dumps(config, indent=2) + "\n"}
        return files.save_folder(prefix, ADAPTER, tensors, {"format": "pt", **common}, texts)
    if layout == KOHYA:
        tensors, own = to_kohya(lora, blocks, base, title, description)
    else:
        tensors = to_comfyui(lora, blocks is not None)
        own = {"modelspec.title": title, "modelspec.description": description}
    return files.save_safetensors(prefix, tensors, {**own, **common})


def search_note(paths: list[Path], layout: str) -> list[str]:
    """A line for the artist when Load LoRA does not look where files of this layout were written."""
    # Where Load LoRA looks by default; the host adds it to its search path at the start.
    folder = Path(files.folder_paths.get_output_directory(), "loras")
    if layout == PEFT or all(folder in path.parents for path in paths):
        return []
    return ["Load LoRA lists files of output/loras: move them there or to models/loras, or name them loras/..."]
