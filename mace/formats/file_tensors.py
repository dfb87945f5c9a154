"""A safetensors file whose tensors are read when they are asked for: what lies in it takes no memory meanwhile."""

import json
import os
from collections.abc import Iterator, Mapping
from typing import BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..messages import MessageError


class FileTensors(Mapping):
    """The tensors of a file by name, each read anew, into memory of its own, whenever it is asked for.

    metadata: of the file.  Raises ValueError, with the file's `name`, for one that cannot be read, and later for one
    that is not the file any more that it was here.
    """

    def __init__(self, path: str, name: str):
        self._path, self._name = path, name
        try:
            # Mapped: none of the tensors' own bytes are read.
            with safe_open(path, framework="pt") as opened, open(path, "rb") as file:
                self._stamp = _stamp(file)
                self.metadata: dict[str, str] = opened.metadata() or {}
                size = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(size))
                views = ((key, opened.get_tensor(key)) for key in opened.keys())
                self._places = {
                    key: (8 + size + header[key]["data_offsets"][0], view.dtype, view.shape) for key, view in views
                }
        except SafetensorError as error:
            raise ValueError(f"{name} is not a safetensors file or is damaged: {error}") from None

    def __getitem__(self, key: str) -> Tensor:
        begin, dtype, shape = self._places[key]
        found = torch.empty(shape, dtype=dtype)
        try:
            with open(self._path, "rb") as file:
                file.seek(begin)
                file.readinto(found.view(-1).view(torch.uint8).numpy())
                # Behind the reading: what is written meanwhile counts too.
                same = _stamp(file) == self._stamp
        except OSError as error:
            raise MessageError(f"{self._name} cannot be read any more ({error.strerror}); load it again") from None
        if not same:
            raise MessageError(f"{self._name} has changed since it was loaded; queue again, so that it is loaded anew")
        return found

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def _stamp(file: BinaryIO) -> tuple[int, int]:
    status = os.stat(file.fileno())
    return status.st_size, status.st_mtime_ns
