"""Start a ComfyUI with this pack in it, and stop it again. Standard library only."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

from . import process
from .cache import REPO, DevError

PACK_NAME = "mace-comfyui"
# Custom node without nodes, for the templates that draw with the demo model.
DEMO_PACK, DEMO_NAME = Path("assets", "demo"), "mace-comfyui-demo"
CHECKPOINT_NAME = "mace_demo.safetensors"
LOOPBACK = "127.0.0.1"
ACCELERATOR = (
    "import sys, torch\n"
    "found = torch.cuda.is_available() or torch.backends.mps.is_available() or "
    "(hasattr(torch, 'xpu') and torch.xpu.is_available())\n"
    "sys.exit(0 if found else 3)"
)
# Even a proxy named for all hosts must not stand between us and the loopback.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Host:
    """A running ComfyUI. Leaving the `with` block stops it and everything it started."""

    def __init__(self, child: subprocess.Popen, port: int, base_dir: Path, log_path: Path):
        self.process, self.port, self.base_dir, self.log_path = child, port, base_dir, log_path
        self.url = f"http://{LOOPBACK}:{port}"

    def __enter__(self) -> "Host":
        return self

    def __exit__(self, *exception) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop it; nothing happens when it has already ended."""
        process.stop(self.process)

    def log_tail(self, lines: int = 25) -> str:
        """The log's last lines."""
        return "\n".join(self.log_path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


def start(
    comfy_dir,
    python,
    base_dir,
    port: int = 0,
    pack_dir=REPO,
    extra_args=(),
    log_path=None,
    checkpoint=None,
    env=None,
    cpu: bool | None = None,
    echo: bool = False,
    timeout: float = 300,
) -> Host:
    """Start the ComfyUI in `comfy_dir` with `python`, and return once it answers.

    `port` 0 takes a free one. `pack_dir` is linked in as a custom node (None: no pack); `checkpoint` is put in
    as models/checkpoints/mace_demo.safetensors. `cpu` True forces the processor; None asks torch whether there
    is anything else. `echo` also shows the log on standard error. Raises DevError, with the log's tail, when the
    host ends or does not answer within `timeout` seconds."""
    base_dir = Path(base_dir).absolute()
    log_path = Path(log_path) if log_path else base_dir / "host.log"
    prepare_base(base_dir, pack_dir, checkpoint)
    port = _port(port)
    command = [
        python,
        Path(comfy_dir) / "main.py",
        "--listen",
        LOOPBACK,
        "--port",
        port,
        "--base-directory",
        base_dir,
        "--disable-api-nodes",
        "--database-url",
        "sqlite:///:memory:",
    ]
    extra_args = [str(argument) for argument in extra_args]
    if "--cpu" not in extra_args and (cpu or (cpu is None and not has_accelerator(python))):
        command.append("--cpu")
    with open(log_path, "wb") as log:
        child = process.start(
            command + extra_args, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, cwd=base_dir, env=env
        )
    host = Host(child, port, base_dir, log_path)
    try:
        if echo:
            threading.Thread(target=_echo, args=(host,), daemon=True).start()
        _wait(host, timeout)
    except BaseException:
        host.stop()
        raise
    return host


def has_accelerator(python) -> bool:
    """Whether the interpreter's torch sees a device other than the processor. Raises DevError without torch."""
    answer = subprocess.run([str(python), "-c", ACCELERATOR], capture_output=True, text=True, check=False)
    if answer.returncode not in (0, 3):
        raise DevError(f"{python} cannot use torch: {answer.stderr.strip()[-400:]}")
    return answer.returncode == 0


def prepare_base(base_dir: Path, pack_dir=REPO, checkpoint=None) -> None:
    """Make the base directory: the pack, its demo files, the checkpoint with the templates that draw with it, and
    settings without the first tour."""
    (base_dir / "custom_nodes").mkdir(parents=True, exist_ok=True)
    if pack_dir is not None:
        _link_folder(Path(pack_dir).resolve(), base_dir / "custom_nodes" / PACK_NAME)
        for folder, names in (
            ("mace_priors", "*prior*.safetensors"),
            ("mace_loras", "*loras*.safetensors"),
            ("mace_judges", "judge.safetensors"),
        ):
            for asset in (Path(pack_dir) / "assets" / "demo").glob(names):
                # Small, and a file of the checkout: a copy, so that neither side can change the other's.
                _put_file(asset, base_dir / "models" / folder / asset.name, (shutil.copyfile,))
        if checkpoint is not None and (Path(pack_dir) / DEMO_PACK).is_dir():
            _link_folder((Path(pack_dir) / DEMO_PACK).resolve(), base_dir / "custom_nodes" / DEMO_NAME)
    if checkpoint is not None:
        _put_file(Path(checkpoint), base_dir / "models" / "checkpoints" / CHECKPOINT_NAME)
    settings = base_dir / "user" / "default" / "comfy.settings.json"
    if not settings.exists():
        settings.parent.mkdir(parents=True, exist_ok=True)
        settings.write_text(json.dumps({"Comfy.TutorialCompleted": True}), encoding="utf-8")


def get_json(url: str, timeout: float = 30):
    """GET `url` and return its JSON. Raises OSError when there is no good answer."""
    with _OPENER.open(url, timeout=timeout) as answer:
        return json.load(answer)


def _link_folder(target: Path, link: Path) -> None:
    if os.path.realpath(link) == str(target) and link.exists():
        return
    if link.is_symlink():
        link.unlink()
    elif link.exists():
        raise DevError(f"{link} is in the way of the link to this pack. Move it away.")
    if process.WINDOWS:
        import _winapi

        # Unlike a symbolic link, a junction needs no special right.
        _winapi.CreateJunction(str(target), str(link))
    else:
        link.symlink_to(target, target_is_directory=True)


def _put_file(source: Path, target: Path, ways=(os.link, os.symlink, shutil.copyfile)) -> None:
    if os.link in ways and target.exists() and target.samefile(source):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(target.name + ".part")
    temporary.unlink(missing_ok=True)
    # Links fail across disks and on some file systems; a copy always works.
    for put in ways:
        try:
            put(source, temporary)
            break
        except OSError:
            temporary.unlink(missing_ok=True)
            if put is shutil.copyfile:
                raise
    os.replace(temporary, target)


def _port(port: int) -> int:
    with socket.socket() as probe:
        # The port of a host stopped a moment ago may be taken again at once, as the host itself does it.
        if not process.WINDOWS:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            raise DevError(
                f"Port {port} is not free ({error.strerror}). Choose another with --port, or 0 for any free one."
            ) from error
        return probe.getsockname()[1]


def _wait(host: Host, timeout: float) -> None:
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if host.process.poll() is not None:
            raise DevError(
                f"ComfyUI ended with code {host.process.returncode} while starting. "
                f"The end of its log ({host.log_path}):\n{host.log_tail()}"
            )
        try:
            get_json(host.url + "/system_stats", timeout=5)
            return
        except (OSError, urllib.error.URLError, ValueError):
            time.sleep(0.25)
    raise DevError(
        f"ComfyUI did not answer within {timeout:.0f} s. The end of its log ({host.log_path}):\n" + host.log_tail()
    )


def _echo(host: Host) -> None:
    with open(host.log_path, encoding="utf-8", errors="replace") as log:
        while True:
            text = log.read()
            if text:
                sys.stderr.write(text)
                sys.stderr.flush()
            elif host.process.poll() is not None:
                return
            else:
                time.sleep(0.2)
