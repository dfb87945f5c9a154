"""The folder of units' results: files by content key, whole or not there, and claims, so that no two do one unit.

A claim is a file that only one can make. Whoever holds it touches it again and again; one that was not touched for a
while, or whose process is gone from this machine, belongs to nobody. It is taken over by making the file of the next
number, which again only one can: nothing is removed that somebody else may just have made.
"""

import contextlib
import hashlib
import json
import logging
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save, save_file
from torch import Tensor

from .units import Unit

# Seconds between two touches, and without one until a claim is nobody's.
BEAT, STALE = 5.0, 60.0
OLD = 3600.0
# What the network's file systems may take to show a new file.
PATIENCE = 30.0
KEY, DIGEST = "mace.unit", "mace.sha256"


class BrokenResult(ValueError):
    """A unit's result that is not what was written."""


class Folder:
    """path: made when something is written; claims have a folder in it.  beat, stale: seconds, see above."""

    def __init__(self, path: Path, beat: float = BEAT, stale: float = STALE):
        self.path, self._claims, self._beat, self._stale = path, path / "claims", beat, stale
        self._owner = uuid.uuid4().hex
        self._held: dict[str, Path] = {}
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None

    def file(self, unit: Unit) -> Path:
        """Where a unit's result lies."""
        return self.path / f"{unit.key}.{unit.kind}.safetensors"

    def holds(self, unit: Unit) -> bool:
        """Whether a unit's result is there, looked at in whole. A broken one is removed."""
        path = self.file(unit)
        if not path.exists():
            return False
        try:
            check(path, unit.key)
        except BrokenResult as error:
            logging.warning("MACE: %s is made again: %s", path.name, error)
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
            return False
        return True

    def arrived(self, unit: Unit) -> bool:
        """Whether a result that a worker wrote is to be seen here by now, or within some seconds."""
        end = time.monotonic() + PATIENCE
        while not self.file(unit).exists():
            if time.monotonic() > end:
                return False
            time.sleep(0.2)
        return True

    def put(self, unit_file: str, write) -> int:
        """Write a file under its name, whole or not at all; its bytes. write(path): what writes it."""
        self.path.mkdir(parents=True, exist_ok=True)
        temporary = self.path / f".{uuid.uuid4().hex}.tmp"
        try:
            write(temporary)
            with open(temporary, "rb") as written:
                os.fsync(written.fileno())
            size = temporary.stat().st_size
            os.replace(temporary, self.path / unit_file)
        finally:
            temporary.unlink(missing_ok=True)
        return size

    def forget(self, unit: Unit) -> None:
        """Remove a unit's result."""
        self.file(unit).unlink(missing_ok=True)

    def tidy(self) -> None:
        """Remove what workers that were killed left half written, an hour ago and before."""
        self._claims.mkdir(parents=True, exist_ok=True)
        now = self._now()
        for path in self.path.glob(".*.tmp"):
            with contextlib.suppress(OSError):
                if now - path.stat().st_mtime > OLD:
                    path.unlink()

    def claim(self, unit: Unit) -> bool:
        """Whether this unit is ours to do now; False while somebody else has it."""
        if unit.key in self._held:
            return True
        self._claims.mkdir(parents=True, exist_ok=True)
        number, last = self._last(unit.key)
        if last is not None and not self._given_up(last):
            return False
        mine = self._claims / f"{unit.key}.{number + 1}.claim"
        if not self._made(mine):
            return False
        with self._lock:
            self._held[unit.key] = mine
        if self._thread is None:
            self._thread = threading.Thread(target=self._touch, daemon=True)
            self._thread.start()
        return True

    def release(self, unit: Unit) -> None:
        """Give a claim back."""
        with self._lock:
            mine = self._held.pop(unit.key, None)
        if mine is not None:
            self._remove(unit.key, mine)

    def clear(self, unit: Unit) -> None:
        """Remove the claim that a run which is gone left on a unit whose result is there."""
        _, last = self._last(unit.key)
        if last is not None and self._given_up(last):
            self._remove(unit.key, last)

    def _remove(self, key: str, last: Path) -> None:
        # The highest last: as long as it is there, those below it say nothing.
        for number in range(1, int(last.name.split(".")[1]) + 1):
            with contextlib.suppress(OSError):
                (self._claims / f"{key}.{number}.claim").unlink(missing_ok=True)

    def close(self) -> None:
        """Give all claims back."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        for key in list(self._held):
            self.release(Unit("", 0, (), key))
        with contextlib.suppress(OSError):
            (self._claims / f".{self._owner}.clock").unlink(missing_ok=True)

    def _last(self, key: str) -> tuple[int, Path | None]:
        """(number of a unit's last claim, its file), or (0, None)."""
        found = {int(path.name.split(".")[1]): path for path in self._claims.glob(f"{key}.*.claim")}
        return max(found.items(), default=(0, None))

    def _made(self, path: Path) -> bool:
        """Whether a claim's file could be made, which it cannot where there is one."""
        # Written under another name and linked, so that nobody reads half of it.
        text = json.dumps({"owner": self._owner, "machine": machine(), "pid": os.getpid(), "started": _started(None)})
        temporary = self._claims / f".{uuid.uuid4().hex}.tmp"
        try:
            temporary.write_text(text, encoding="utf-8")
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError:
            # No hard links here.
            try:
                with open(path, "x", encoding="utf-8") as file:
                    file.write(text)
            except FileExistsError:
                return False
        finally:
            temporary.unlink(missing_ok=True)
        return True

    def _given_up(self, claim: Path) -> bool:
        """Whether a claim is nobody's any more."""
        try:
            age = self._now() - claim.stat().st_mtime
            written = json.loads(claim.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            # Given back just now, or being written where there are no hard links.
            return False
        if age > self._stale:
            return True
        return written.get("machine") == machine() and written.get("started") != _started(written.get("pid"))

    def _now(self) -> float:
        """The time by the folder's own clock, for machines do not agree on it."""
        clock = self._claims / f".{self._owner}.clock"
        clock.touch()
        return clock.stat().st_mtime

    def _touch(self) -> None:
        while not self._ended.wait(self._beat):
            with self._lock:
                for path in self._held.values():
                    with contextlib.suppress(OSError):
                        os.utime(path)


def machine() -> str:
    """This machine, or this container of it: where process numbers mean the same processes."""
    try:
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        space = ""
    return f"{platform.node()} {space}"


def _started(pid: int | None) -> float | None:
    """When a process started, ours for None; None where it is gone."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except (psutil.Error, ValueError, TypeError):
        return None


def signed(unit_key: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """A result's metadata with its key and the digest that `check` looks for."""
    return {**metadata, KEY: unit_key, DIGEST: _digest((name, tensors[name]) for name in sorted(tensors))}


def as_bytes(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """A result as it is sent."""
    return save(tensors, metadata)


def from_bytes(data: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a safetensors file's bytes."""
    # Its header behind its size in eight bytes. The library's own reader of bytes leaves the metadata out.
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return load(data), header.get("__metadata__", {})


def as_file(tensors: dict[str, Tensor], metadata: dict[str, str]):
    """What writes a result to a path."""
    return lambda path: save_file(tensors, path, metadata)


def check(path: Path, key: str) -> None:
    """Raise BrokenResult unless a file is a unit's result as it was written, to the bit."""
    with opened(path) as (names, tensor, metadata):
        if metadata.get(KEY) != key:
            raise BrokenResult("it is another unit's")
        if metadata.get(DIGEST) != _digest((name, tensor(name)) for name in sorted(names)):
            raise BrokenResult("its bytes are not those that were written")


@contextlib.contextmanager
def opened(path: Path):
    """(names, what reads a tensor by its name, metadata) of a result. Raises BrokenResult."""
    try:
        with safe_open(path, framework="pt") as file:
            yield list(file.keys()), file.get_tensor, file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise BrokenResult(str(error)) from error


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a result. Raises BrokenResult."""
    with opened(path) as (names, tensor, metadata):
        return {name: tensor(name) for name in names}, metadata


def _digest(tensors: Iterator[tuple[str, Tensor]]) -> str:
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(memoryview(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()
