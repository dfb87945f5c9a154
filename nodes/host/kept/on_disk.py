"""Large batches in files instead of memory: pictures, masks and moments of long lists.

A hundred concepts have gigabytes of pictures. They are tensors like any others, but their bytes lie in a file, of which
the system holds in memory what is being looked at and lets go of the rest. The file has no name any more where the
system allows that, and its room is free when the tensor is; elsewhere it stands in the host's temp folder, which the
host empties when it starts and ends.
"""

import math
import os
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from itertools import chain

import folder_paths
import torch
from comfy import model_management
from torch import Tensor

from ....mace.formats.moments_file import FileMoments
from ....mace.method.moments import ConceptMoments
from ....mace.method.span import RowMoments
from ....mace.method.sums import Moments, StoredMoments, gather_moments

# Of the machine's memory, and in bytes, what the moments of one list take at most before they go to the disk: 50
# concepts of SD1.x, so that a thousand take no more. Those that are kept between runs have a budget of their own.
SHARE_OF_MOMENTS, MOST_OF_MOMENTS = 0.1, 500 << 20


def written(parts: Iterable[Tensor]) -> Tensor:
    """The parts one after the other, as `torch.cat` joins them, in a file of the host's temp folder.

    Parts are taken one at a time; they agree in dtype (one that numpy has) and in all sizes but the first. Raises
    OSError, with the folder's name, where they do not fit on the disk.
    """
    folder = folder_paths.get_temp_directory()
    os.makedirs(folder, exist_ok=True)
    handle, path = tempfile.mkstemp(prefix="mace_", suffix=".batch", dir=folder)
    rows, shape, dtype = 0, (), None
    try:
        with os.fdopen(handle, "wb") as file:
            for part in parts:
                if dtype is not None and (part.dtype != dtype or part.shape[1:] != shape):
                    raise ValueError(f"{part.dtype} {tuple(part.shape)} does not join {dtype} (n, {tuple(shape)})")
                rows, shape, dtype = rows + len(part), part.shape[1:], part.dtype
                if part.numel():
                    file.write(memoryview(part.detach().to("cpu").contiguous().numpy()).cast("B"))
        if dtype is None:
            raise ValueError("there is nothing to write")
        if not rows * math.prod(shape):
            return torch.empty(rows, *shape, dtype=dtype)
        # Private: whoever writes into it changes pages of its own.
        return torch.from_file(path, shared=False, size=rows * math.prod(shape), dtype=dtype).view(rows, *shape)
    except OSError as error:
        raise OSError(f"pictures, masks and moments are kept in {folder}, and that failed: {error}") from error
    finally:
        try:
            os.unlink(path)
        except OSError:  # Windows, while the file is in use
            pass


def kept_moments(moments: Iterable[ConceptMoments | RowMoments]) -> Moments:
    """A list's moments: in memory, or in files of the host's temp folder where they are many."""
    folder = folder_paths.get_temp_directory()
    os.makedirs(folder, exist_ok=True)
    share = int(model_management.get_total_memory(torch.device("cpu")) * SHARE_OF_MOMENTS)
    most = min(share, MOST_OF_MOMENTS)
    given = iter(moments)
    first = next(given)
    if isinstance(first, RowMoments):
        # Their sums would be as wide as their texts: they stay rows.
        return _kept_rows(chain([first], given), most)
    return gather_moments(chain([first], given), most, folder)


def _kept_rows(moments: Iterable[RowMoments], most: int) -> tuple[RowMoments, ...]:
    kept, size = [], 0
    for own in moments:
        size += own.bytes
        kept.append(own if size <= most else _rows_on_disk(own))
    return tuple(kept)


def _rows_on_disk(own: RowMoments) -> RowMoments:
    f, g, rest = (written([part]) for part in (own.f, own.g, own.rest))
    return replace(own, f=f, g=g, rest=rest, others=tuple(map(_rows_on_disk, own.others)))


def held_together(own: ConceptMoments | FileMoments | RowMoments | StoredMoments) -> ConceptMoments | RowMoments:
    """Moments as tensors that may be held beside many others': those that memory does not hold lie in a file."""
    if own.bytes:
        return own
    width = own.width
    packed = width * (width + 1) // 2
    parts = written(getattr(own, name).flatten() for name in ("cross", "paired", "total"))
    cross, paired, total = parts.split((width * width, packed, packed))
    pooled = own.pooled and held_together(own.pooled)
    others = tuple(map(held_together, own.others))
    return ConceptMoments(cross.view(width, width), paired, total, own.pairs, own.prompts, pooled, others)
