"""Small files of models: matrices in 8 bits a row, and nothing of what can be rebuilt.

Of a matrix (a convolution counts as one, [out, rest]) all rows and columns that are zero are left out; what is left is
kept as int8 with one scale a row, or as it is where that is asked for. Tensors that hold one value, or hardly anything
but zeros, are kept as that. All else is float16, but numbers by themselves (of no dimension) are float32. Numpy alone
puts it together again, to the same bits everywhere.
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

FORMAT = "mace-compact-2"
# Below so many elements a matrix stays float16.
SMALL = 4096


def steps_of(matrix: np.ndarray) -> np.ndarray:
    """The step of each row [rows] of a matrix [rows, columns] in 8 bits, float16."""
    return np.maximum((np.abs(matrix).max(1) / 127).astype(np.float16), np.float16(6e-8))


def packed(tensors: Mapping[str, np.ndarray], precise: str = "(?!)") -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """(arrays, metadata) of a file for float tensors by name.

    precise: a regular expression, found in the names of the matrices that stay float16.
    """
    arrays: dict[str, np.ndarray] = {}
    how: dict[str, dict] = {}
    for name, tensor in sorted(tensors.items()):
        tensor = np.asarray(tensor, dtype=np.float32)
        how[name] = {"shape": list(tensor.shape)}
        nonzero = np.flatnonzero(tensor)
        if tensor.size and (tensor == tensor.flat[0]).all():
            how[name]["value"] = float(tensor.flat[0] if tensor.ndim == 0 else np.float16(tensor.flat[0]))
            continue
        if tensor.ndim < 2 or tensor.size < SMALL:
            arrays[name] = tensor.astype(np.float16)
            continue
        matrix = tensor.reshape(tensor.shape[0], -1)
        rows, columns = (np.flatnonzero((matrix != 0).any(axis)) for axis in (1, 0))
        # Six bytes an element here, one there.
        if 6 * len(nonzero) < len(rows) * len(columns):
            arrays[f"{name}|places"] = nonzero.astype(np.int32)
            arrays[f"{name}|values"] = tensor.flat[nonzero].astype(np.float16)
        else:
            for part, found, full in (("rows", rows, matrix.shape[0]), ("columns", columns, matrix.shape[1])):
                if len(found) < full:
                    arrays[f"{name}|{part}"] = found.astype(np.int32)
            live = matrix[np.ix_(rows, columns)]
            if re.search(precise, name):
                arrays[f"{name}|half"] = live.astype(np.float16)
                continue
            scale = steps_of(live)
            arrays[f"{name}|scale"] = scale
            steps = np.rint(live / scale.astype(np.float32)[:, None])
            arrays[f"{name}|q8"] = np.clip(steps, -127, 127).astype(np.int8)
    return arrays, {"format": FORMAT, "tensors": json.dumps(how, separators=(",", ":"))}


def unpacked(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None) -> dict[str, np.ndarray]:
    """The tensors of a file as float16, by name. Raises ValueError for a file of another format."""
    if (metadata or {}).get("format") != FORMAT:
        raise ValueError(f"not a file of the format {FORMAT}")
    found = {}
    for name, entry in json.loads(metadata["tensors"]).items():
        shape = entry["shape"]
        if "value" in entry:
            found[name] = np.full(shape, entry["value"], dtype=np.float16 if shape else np.float32)
        elif name in arrays:
            found[name] = arrays[name].astype(np.float16)
        elif f"{name}|places" in arrays:
            tensor = np.zeros(math.prod(shape), dtype=np.float16)
            tensor[arrays[f"{name}|places"]] = arrays[f"{name}|values"]
            found[name] = tensor.reshape(shape)
        else:
            if f"{name}|half" in arrays:
                live = arrays[f"{name}|half"]
            else:
                live = arrays[f"{name}|q8"].astype(np.float32) * arrays[f"{name}|scale"].astype(np.float32)[:, None]
            matrix = np.zeros((shape[0], math.prod(shape[1:])), dtype=np.float16)
            rows = arrays.get(f"{name}|rows", np.arange(matrix.shape[0]))
            columns = arrays.get(f"{name}|columns", np.arange(matrix.shape[1]))
            matrix[np.ix_(rows, columns)] = live.astype(np.float16)
            found[name] = matrix.reshape(shape)
    return found


def read_compact(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a compact file, float16. Raises ValueError for another file."""
    with safe_open(path, "np") as file:
        return unpacked({name: file.get_tensor(name) for name in file.keys()}, file.metadata())  # noqa: SIM118


def write_compact(path: Path, tensors: Mapping[str, np.ndarray], precise: str = "(?!)") -> None:
    """Write tensors to a compact file. precise: see `packed`."""
    arrays, metadata = packed(tensors, precise)
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path, metadata)
