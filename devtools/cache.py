"""Where dev.py keeps what it makes outside the checkout, and the lock that guards it. Standard library only."""

import hashlib
import os
import sys
import time
from contextlib import contextmanager
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
APP = "mace-comfyui"


class DevError(Exception):
    """Something the person at the terminal can act on. dev.py prints the message without a traceback."""


def cache_root() -> Path:
    """The folder for everything that can be made again, in the place the platform has for it."""
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]).expanduser().absolute() / APP
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return (Path(local) if local else Path.home() / "AppData" / "Local") / APP / "Cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / APP
    return Path.home() / ".cache" / APP


def host_base() -> Path:
    """The base directory of this checkout's host (models, input, output, saved workflows).

    It is keyed by the checkout's path, so workflows saved in the browser are there the next time."""
    key = hashlib.sha256(str(REPO).encode()).hexdigest()[:12]
    return cache_root() / f"base-{key}"


def sha256_file(path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _try_lock(file) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@contextmanager
def locked(path: Path, say=print):
    """Hold an exclusive lock on `path` for the block; wait, and say so, while another process holds it.

    Yields the lock's file descriptor. The system releases the lock when its holder ends, however it ends, so
    nothing can be left locked. On POSIX a child given the descriptor holds the lock too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b") as file:
        waited = 0
        while not _try_lock(file):
            if waited % 60 == 0:
                say(f"Waiting: another dev.py is setting this up (lock: {path}).")
            time.sleep(1)
            waited += 1
        yield file.fileno()
        # Closing the file releases the lock. It stays on disk: removing it could race with a waiter.
