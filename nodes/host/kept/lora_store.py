"""Trained LoRAs, and trainings that were stopped, on disk by content key: they outlive the process."""

import contextlib
import errno
import json
import logging
import os
import re
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

import folder_paths
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ....mace.formats.lora_set import ErasureLora, LoraSet
from ....mace.formats.lora_set_file import set_from_file, set_to_file
from ....mace.formats.records import NAMES, read_record
from ....mace.method.train import TrainState

# A LoRA of rank 1 takes 0.2 MB in SD1.x and 1.6 MB in SDXL, where it stands in training three times that.
LIMIT_BYTES = 2 << 30
LORA, STATE, PLANNED, AGAIN = "lora", "state", "planned", "again"
BEGUN_ON = "refined_on"
_KEY = re.compile(r"[0-9a-f]{64}")
# ERROR_DISK_FULL is Windows' own.
_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), 112}
_SIDES, _PARTS = ("up", "down"), ("mean", "square")


class LoraStore:
    """Files of a folder, up to `limit` bytes; those not read for the longest time go first.

    Files of the keys in `held`, those of the run in progress, stay also beyond the limit.  removed: keys whose files
    went to make room.  begun_on: by key, the refinement (see `Recipe.digest`) that a state was begun on, where it says
    so.  A folder that cannot be written is no error: then nothing outlives the process, and `problem` says why. On a
    disk that is full a LoRA takes the place of what the run can do without.
    """

    def __init__(self, folder: Path, limit: int = LIMIT_BYTES):
        self.folder, self._limit = folder, limit
        self.held: set[str] = set()
        self.removed: set[str] = set()
        self.begun_on: dict[str, str] = {}
        self.problem: str | None = None

    def lora(self, key: str) -> ErasureLora | None:
        """The LoRA under this key, or None."""
        return self._read(key, LORA, lambda tensors, metadata: set_from_file(tensors, metadata).loras[0])

    def put_lora(self, key: str, lora: ErasureLora, blocks: tuple[int, ...]) -> None:
        """Keep a trained LoRA, in place of where its training stood. blocks: num_res_blocks of its UNet."""
        tensors, metadata = set_to_file(LoraSet((lora,), None, blocks), with_moments=False)
        if self._write(key, LORA, tensors, metadata):
            # Now there is room, or a right.
            self.problem = None
            # A state that stays is not read beside its LoRA.
            _remove(self._path(key, STATE))

    def state(self, key: str) -> TrainState | None:
        """Where the training under this key was stopped, or None."""

        def parse(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> TrainState:
            found = _state_from_file(tensors, metadata)
            if BEGUN_ON in metadata:
                self.begun_on[key] = metadata[BEGUN_ON]
            return found

        return self._read(key, STATE, parse)

    def put_state(self, key: str, state: TrainState, refined_on: str) -> None:
        """Keep where a training stands.  refined_on: the refinement it goes on with, if it was not begun on another."""
        tensors = {"losses": state.losses}
        for name, pair in state.pairs.items():
            for side, parameter, moments in zip(_SIDES, pair, state.moments[name], strict=True):
                tensors[f"{side}.{name}"] = parameter
                for part, tensor in zip(_PARTS, moments or (), strict=False):
                    tensors[f"{side}.{part}.{name}"] = tensor
        begun_on = self.begun_on.setdefault(key, refined_on)
        self._write(key, STATE, tensors, {"keys": json.dumps(list(state.pairs)), BEGUN_ON: begun_on})

    def has_lora(self, key: str) -> bool:
        """Whether a LoRA lies under this key."""
        return self._path(key, LORA).exists()

    def mark_read(self, key: str, kind: str = LORA) -> bool:
        """Whether a file lies under this key, which counts as read now."""
        try:
            os.utime(self._path(key, kind))
        except FileNotFoundError:
            return False
        except OSError:  # it is there, and only cannot be marked
            pass
        return True

    def planned(self, plan: str) -> str | None:
        """The key of what was planned so, or None."""
        return self._read(plan, PLANNED, lambda tensors, metadata: metadata["key"])

    def put_planned(self, plan: str, key: str) -> None:
        """Keep the key that a plan came to. plan: what is known of a training before its key is, as a key."""
        self._write(plan, PLANNED, {}, {"key": key})

    def forget(self, key: str) -> None:
        """Remove what is kept under this key."""
        self.begun_on.pop(key, None)
        for kind in (LORA, STATE):
            _remove(self._path(key, kind))

    def forget_once(self, key: str) -> None:
        """`forget`, where it was not done since `end_forgetting`: what was trained again is kept as any."""
        if not self.mark_read(key, AGAIN):
            self.forget(key)
            self._write(key, AGAIN, {}, {})

    def end_forgetting(self, key: str) -> None:
        """See `forget_once`."""
        _remove(self._path(key, AGAIN))

    def _path(self, key: str, kind: str) -> Path:
        if not _KEY.fullmatch(key):
            raise ValueError(f"{key!r} is no key")
        return self.folder / f"{key}.{kind}.safetensors"

    def _read(self, key: str, kind: str, parse):
        path = self._path(key, kind)
        try:
            with safe_open(path, framework="pt") as opened:
                # Views would keep the file mapped, and Windows replaces no file that is.
                tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}
                found = parse(tensors, opened.metadata() or {})
        except FileNotFoundError:
            return None
        except OSError as error:  # it may pass: a drive that is away, a right that is missing
            logging.warning("MACE: %s cannot be read: %s", path.name, error)
            return None
        except (SafetensorError, ValueError, KeyError) as error:
            logging.warning("MACE: %s cannot be read and is removed: %s", path.name, error)
            _remove(path)
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return found

    def _write(self, key: str, kind: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bool:
        self.held.add(key)
        in_the_way = self._in_the_way(key) if kind == LORA else iter(())
        while (error := self._try_to_write(self._path(key, kind), tensors, metadata)) is not None:
            path = next(in_the_way, None) if _is_full(error) else None
            if path is None:
                self.problem = f"trained LoRAs cannot be kept in {self.folder}: {error}"
                logging.warning("MACE: %s", self.problem)
                return False
            _remove(path)
        return True

    def _try_to_write(
        self, path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
    ) -> OSError | SafetensorError | None:
        """What failed, or None."""
        temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, dict(metadata))
            os.replace(temporary, path)
            self._make_room()
        except (OSError, SafetensorError) as error:
            _remove(temporary)
            return error
        return None

    def _in_the_way(self, key: str) -> Iterator[Path]:
        """What goes for a LoRA where the disk is full: the run's states, its own first, then files of other runs."""
        paths = [path for _, path in self._oldest_first()]
        states = [path for path in paths if _key_of(path) in self.held and path.name.endswith(f".{STATE}.safetensors")]
        yield from sorted(states, key=lambda path: _key_of(path) != key)
        for path in paths:
            if _key_of(path) not in self.held:
                self.removed |= {_key_of(path)} - {""}
                yield path

    def _oldest_first(self) -> list[tuple[int, Path]]:
        """(bytes, path) of the folder's files, those not read for the longest time first."""
        kept = []
        for path in self.folder.glob("*"):
            with contextlib.suppress(OSError):
                status = path.stat()
                kept.append((status.st_mtime, status.st_size, path))
        return [(size, path) for _, size, path in sorted(kept, key=lambda entry: entry[0])]

    def _make_room(self) -> None:
        """Remove the files longest not read, beyond the limit; and what a killed process left half written."""
        files = self._oldest_first()
        left = sum(size for size, _ in files)
        for size, path in files:
            if left <= self._limit:
                return
            key = _key_of(path)
            if key not in self.held:
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
                    left -= size
                    if key:
                        self.removed.add(key)


def _remove(path: Path) -> None:
    """Remove a file that may be gone; what cannot be removed stays."""
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def _key_of(path: Path) -> str:
    """The key of a kept file; "" of one half written."""
    return path.name.partition(".")[0]


def _is_full(error: OSError | SafetensorError) -> bool:
    """Whether a disk had no room left. Safetensors says the system's number in words."""
    said = re.search(r"os error (\d+)", str(error))
    number = int(said[1]) if said else getattr(error, "errno", None)
    return number in _FULL


def _state_from_file(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> TrainState:
    """A state as `put_state` wrote it. Raises ValueError or KeyError for another file."""
    names = read_record(NAMES, metadata["keys"], "keys")
    if not all(tensor.dtype == torch.float32 and torch.isfinite(tensor).all() for tensor in tensors.values()):
        raise ValueError("it holds values that are not finite numbers in float32")

    def moments(side: str, name: str) -> tuple[Tensor, Tensor] | None:
        if f"{side}.{_PARTS[0]}.{name}" not in tensors:
            return None
        return tuple(tensors[f"{side}.{part}.{name}"] for part in _PARTS)

    return TrainState(
        tensors["losses"],
        {name: tuple(tensors[f"{side}.{name}"] for side in _SIDES) for name in names},
        {name: tuple(moments(side, name) for side in _SIDES) for name in names},
    )


def store() -> LoraStore:
    """The store in the host's user folder."""
    return LoraStore(Path(folder_paths.get_user_directory()) / "mace" / "loras")
