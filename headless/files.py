"""What is read before anything is opened, and what is written: whole, in its place, or not at all."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .errors import BadInput

STDIN = "-"


def read_list(name: str, option: str) -> str:
    """The text of a list, or of standard input for "-". Raises BadInput."""
    try:
        return sys.stdin.read() if name == STDIN else Path(name).expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{option} {name}: {getattr(error, 'strerror', None) or error}") from None


def target_of(name: str, option: str, replace: bool) -> Path:
    """Where a file is to be written. Raises BadInput where it cannot be, or where one is that may not be replaced."""
    path = Path(name).expanduser().absolute()
    if path.is_dir() or not path.name:
        raise BadInput(f"{option}: {path} is a folder; name a file in it")
    if path.exists() and not replace:
        raise BadInput(f"{option}: {path} exists; choose another name, or add --overwrite")
    if not path.parent.is_dir():
        raise BadInput(f"{option}: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise BadInput(f"{option}: {path.parent} may not be written to")
    return path


@contextlib.contextmanager
def folder_beside(target: Path) -> Iterator[Path]:
    """A hidden folder beside a file, of the same disk; gone afterwards, with what is in it."""
    with tempfile.TemporaryDirectory(prefix=".mace-", dir=target.parent, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def put(written: Path, target: Path, replace: bool) -> None:
    """Give a finished file of the same disk its name. Raises FileExistsError rather than replace one unasked."""
    if replace:
        os.replace(written, target)
        return
    try:
        os.link(written, target)
    except FileExistsError:
        raise
    except OSError:
        # No hard links here: reserving the name first keeps it exclusive too.
        os.close(os.open(target, os.O_CREAT | os.O_EXCL))
        os.replace(written, target)


def write_text(text: str, target: Path, replace: bool) -> None:
    """Write a text file, whole or not at all."""
    with folder_beside(target) as folder:
        written = folder / "text"
        written.write_text(text, encoding="utf-8")
        put(written, target, replace)
