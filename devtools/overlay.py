"""A Python with packages of a requirements file beside those of the environment, made once in the cache folder."""

import hashlib
import subprocess
from pathlib import Path

from . import process
from .cache import DevError, cache_root, locked


def overlay(python: Path, requirements: Path, name: str, say=print) -> Path:
    """The Python of a venv that holds the packages, over the environment whose Python is given.

    Found again as long as neither changes. Raises DevError where pip fails.
    """
    parts = [str(python), requirements.read_text(encoding="utf-8")]
    folder = cache_root() / f"{name}-{hashlib.sha256(chr(10).join(parts).encode()).hexdigest()[:12]}"
    own = folder / "venv" / ("Scripts/python.exe" if process.WINDOWS else "bin/python")
    done = folder / "done"
    if done.exists() and own.exists():
        return own
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / "lock", say):
        if done.exists() and own.exists():
            return own
        _run(folder, say, python, "-m", "venv", "--clear", folder / "venv")
        # The environment's packages are on its path, and pip sees them as installed.
        places = _purelib(own)
        (places / "environment.pth").write_text(f"{_purelib(python)}\n", encoding="utf-8")
        _run(folder, say, own, "-m", "pip", "install", "--no-input", "-r", requirements)
        done.write_text("finished\n")
    return own


def _purelib(python: Path) -> Path:
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    return Path(subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip())


def _run(folder: Path, say, *command) -> None:
    code, lines = process.call_logged(list(command), folder / "setup.log", say)
    if code:
        raise DevError(f"{' '.join(map(str, command))} failed:\n  " + "\n  ".join(lines))
