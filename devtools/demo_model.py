"""Expand the compact demo model to an ordinary SD1.5 checkpoint.

The compact file leaves out what can be rebuilt: the rows of the token embedding that are zero, ten text layers
that change nothing, and autoencoder blocks whose convolutions are zero. Standard library only: the tensors are
moved as bytes, which also makes the result the same to the bit everywhere.
"""

import hashlib
import json
import math
import os
import struct
import tempfile
from pathlib import Path

COMPACT_SHA256 = "85f397372d230fb9ceeee52068d1e05bc83c72856a0b54401ef2ec915d7d2b96"
METADATA = {
    "format": "pt",
    "modelspec.title": "mace-comfyui demo model",
    "modelspec.description": "A small model for testing concept erasure, trained on two free icon sets.",
    "modelspec.license": "Noto Emoji, Google: Apache-2.0. Twemoji, (c) Twitter, Inc and other contributors: CC BY 4.0. "
    "Text encoder distilled from all-MiniLM-L6-v2: Apache-2.0.",
    "source_sha256": COMPACT_SHA256,
}

TEXT = "cond_stage_model.transformer.text_model."
EMBEDDING = TEXT + "embeddings.token_embedding."
LAYER = TEXT + "encoder.layers."
VOCABULARY, WIDTH, TEXT_LAYERS = 49408, 768, 12
MISSING_BLOCKS = {"taesd_encoder": (1, 4, 5, 9), "taesd_decoder": (10, 14, 15, 18)}
BLOCK_CHANNELS = 64
DTYPE_BYTES = {"F32": 4, "I32": 4, "F16": 2}
HALF_ONE = struct.pack("<e", 1.0)


class DamagedModelError(ValueError):
    """The compact file is not the one this module knows. The message names the file and the cure."""


def expand(compact_path, out_path) -> Path:
    """Write the full checkpoint for `compact_path` to `out_path`, and return `out_path`.

    `out_path` appears complete or not at all; its folder is made if need be. Raises DamagedModelError when the
    compact file is not the shipped one, to the bit, and OSError when reading or writing fails."""
    out = Path(out_path)
    tensors = _rebuild(_read(Path(compact_path)))
    # Larger elements first keeps every tensor aligned; within that, by name.
    names = sorted(tensors, key=lambda name: (-DTYPE_BYTES[tensors[name][0]], name))
    header, offset = {"__metadata__": METADATA}, 0
    for name in names:
        dtype, shape, data = tensors[name]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)

    out.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=out.name + ".", suffix=".part", dir=out.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(struct.pack("<Q", len(text)))
            file.write(text)
            for name in names:
                file.write(tensors[name][2])
        os.chmod(temporary, 0o644)
        os.replace(temporary, out)
    except BaseException:
        os.unlink(temporary)
        raise
    return out


def _read(path: Path) -> dict:
    """The compact file's tensors: name -> (dtype, shape, bytes)."""
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != COMPACT_SHA256:
        raise DamagedModelError(
            f"{path} is damaged or is another file: its checksum is not that of the shipped demo model. "
            f"Get it again, for instance with: git checkout -- {path.name} (in its folder)."
        )
    length = struct.unpack("<Q", content[:8])[0]
    data = memoryview(content)[8 + length :]
    tensors = {}
    for name, entry in json.loads(content[8 : 8 + length]).items():
        if name != "__metadata__":
            start, end = entry["data_offsets"]
            tensors[name] = (entry["dtype"], entry["shape"], data[start:end])
    return tensors


def _rebuild(compact: dict) -> dict:
    tensors = {name: tensor for name, tensor in compact.items() if not name.startswith(EMBEDDING)}
    tensors[EMBEDDING + "weight"] = _scatter(compact[EMBEDDING + "ids"], compact[EMBEDDING + "rows"])
    live = {int(name[len(LAYER) :].split(".")[0]) for name in compact if name.startswith(LAYER)}
    for index in set(range(TEXT_LAYERS)) - live:
        for name in [name for name in compact if name.startswith(LAYER + "0.")]:
            suffix = name[len(LAYER) + 2 :]
            # With zero output projections a layer is its residual path alone: the identity.
            one = "layer_norm" in suffix and suffix.endswith("weight")
            tensors[f"{LAYER}{index}.{suffix}"] = _filled(compact[name][1], HALF_ONE if one else b"\0\0")
    for half, indices in MISSING_BLOCKS.items():
        for index in indices:
            for convolution in (0, 2, 4):
                stem = f"first_stage_model.{half}.{index}.conv.{convolution}."
                tensors[stem + "weight"] = _filled([BLOCK_CHANNELS, BLOCK_CHANNELS, 3, 3], b"\0\0")
                tensors[stem + "bias"] = _filled([BLOCK_CHANNELS], b"\0\0")
    return tensors


def _filled(shape, element: bytes) -> tuple:
    return "F16", shape, element * math.prod(shape)


def _scatter(ids: tuple, rows: tuple) -> tuple:
    row_bytes = WIDTH * DTYPE_BYTES["F16"]
    table = bytearray(VOCABULARY * row_bytes)
    for position, (token,) in enumerate(struct.iter_unpack("<i", ids[2])):
        table[token * row_bytes : (token + 1) * row_bytes] = rows[2][position * row_bytes : (position + 1) * row_bytes]
    return "F16", [VOCABULARY, WIDTH], table
