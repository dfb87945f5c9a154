"""Expand the compact demo model to an ordinary SD1.5 checkpoint.

    python dev.py run python -m devtools.demo_model assets/demo/demo_sd.safetensors mace_demo.safetensors

The compact file leaves out what can be rebuilt (see devtools.compact): the rows of the token embedding that are zero,
ten text layers that change nothing, and autoencoder blocks whose convolutions are zero. The result is the same to the
bit everywhere, which is why its header is written here and not by safetensors, whose metadata has no order.
"""

import hashlib
import json
import os
import struct
import sys
import tempfile
from pathlib import Path

import numpy as np

from .compact import read_compact

COMPACT_SHA256 = "8fc76702a893936c6b7472cd1102b1fb715a9eae0c77ff4d5b14e6995a30b14f"
METADATA = {
    "format": "pt",
    "modelspec.title": "mace-comfyui demo model",
    "modelspec.description": "A small model for testing concept erasure, trained on two free icon sets.",
    "modelspec.license": "Noto Emoji, Google: Apache-2.0. Twemoji, (c) Twitter, Inc and other contributors: CC BY 4.0. "
    "Text encoder distilled from all-MiniLM-L6-v2: Apache-2.0.",
    "source_sha256": COMPACT_SHA256,
}
DTYPES = {np.dtype(np.float32): "F32", np.dtype(np.float16): "F16"}


class DamagedModelError(ValueError):
    """The compact file is not the one this module knows. The message names the file and the cure."""


def expand(compact_path, out_path) -> Path:
    """Write the full checkpoint for `compact_path` to `out_path`, and return `out_path`.

    `out_path` appears complete or not at all; its folder is made if need be. Raises DamagedModelError when the
    compact file is not the shipped one, to the bit, and OSError when reading or writing fails."""
    out, compact = Path(out_path), Path(compact_path)
    if hashlib.sha256(compact.read_bytes()).hexdigest() != COMPACT_SHA256:
        raise DamagedModelError(
            f"{compact} is damaged or is another file: its checksum is not that of the shipped demo model. "
            f"Get it again, for instance with: git checkout -- {compact.name} (in its folder)."
        )
    tensors = read_compact(compact)
    # Larger elements first keeps every tensor aligned; within that, by name.
    names = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    header, offset = {"__metadata__": METADATA}, 0
    for name in names:
        tensor = tensors[name]
        ends = [offset, offset + tensor.nbytes]
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": ends}
        offset += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)

    out.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=out.name + ".", suffix=".part", dir=out.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(struct.pack("<Q", len(text)))
            file.write(text)
            for name in names:
                # A file's bytes are little-endian wherever it is written.
                file.write(tensors[name].astype(tensors[name].dtype.newbyteorder("<"), copy=False).tobytes())
        os.chmod(temporary, 0o644)
        os.replace(temporary, out)
    except BaseException:
        os.unlink(temporary)
        raise
    return out


def main() -> None:
    """The command."""
    try:
        expand(*sys.argv[1:])
    except (DamagedModelError, OSError) as error:
        sys.exit(f"dev.py: the demo model cannot be expanded: {error}")


if __name__ == "__main__":
    main()
