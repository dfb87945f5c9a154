"""One command from its first word to its report and exit code."""

import contextlib
import json
import logging
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

import torch

from .commands import COMMANDS
from .errors import BAD_INPUT, DONE, FAILED, STATUS, STOPPED, BadInput
from .files import target_of, write_text
from .host import Host
from .lists import Lists, read_lists
from .places import PACK, Place
from .progress import Lines, Silent, shown
from .session import Session, targets
from .settings import check_cluster, parser

# ComfyUI's folders under a base directory of its own.
FOLDERS = ("custom_nodes", "models/checkpoints", "input", "output", "user")


def main(arguments: Sequence[str], opened: Callable[[Sequence[str], bool], Host]) -> int:
    """Run a command. Returns the exit code (see `errors`).

    opened(arguments, verbose): the host, started with arguments of its own; asked for when all that can be refused
    without it was checked.
    """
    own, comfy_arguments = _split(arguments)
    out, begun = sys.stdout, time.monotonic()
    report: dict = {"command": own[0] if own else None}
    options, progress = None, Silent(sys.stderr)
    try:
        with stop_on_signals():
            options = parser().parse_args(own)
            progress = shown(options.json_progress, out)
            report |= {"model": options.model}
            # What a host or a node prints is none of the report.
            with contextlib.redirect_stdout(sys.stderr):
                check_cluster(options)
                lists, wanted = read_lists(options), targets(options)
                report["concepts"] = [_described(concept) for concept in lists.parsed]
                if options.report:
                    target_of(options.report, "--report", True)
                host = opened(comfy_arguments, options.verbose)
                run(host, options, lists, wanted, progress, report)
        code = DONE
    except BadInput as error:
        code, report["error"] = BAD_INPUT, str(error)
    except (KeyboardInterrupt, Exception) as error:
        code, report["error"] = _ended(error)
        if code == FAILED and options is not None and options.verbose:
            logging.exception("headless")
    except BaseException as error:
        # ComfyUI's own word for an interrupt is none of Exception.
        if type(error).__name__ != "InterruptProcessingException":
            raise
        code, report["error"] = STOPPED, "stopped"
    report |= {"status": STATUS[code], "exit_code": code, "total_seconds": round(time.monotonic() - begun, 3)}
    progress.close()
    if code != DONE and not isinstance(progress, Lines):
        progress.warn(f"headless: {report['error']}")
    _tell(report, options, progress, out)
    return code


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """(the command's own arguments, those behind -- for ComfyUI)."""
    arguments = list(arguments)
    at = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:at], arguments[at + 1 :]


def _described(concept) -> dict:
    return {"target": concept.target, "mapping": concept.mapping, "type": concept.type, "aliases": concept.aliases}


def _ended(error: BaseException) -> tuple[int, str]:
    """(exit code, words) of an error."""
    if isinstance(error, KeyboardInterrupt):
        return STOPPED, "stopped"
    name = "" if isinstance(error, ValueError | OSError | RuntimeError) else f"{type(error).__name__}: "
    return FAILED, f"{name}{error}"


def _tell(report: dict, options, progress: Silent, out: TextIO) -> None:
    """The report, where it belongs."""
    where = getattr(options, "report", None)
    if where:
        try:
            text = json.dumps(report, indent=1, ensure_ascii=False) + "\n"
            write_text(text, Path(where).expanduser().absolute(), replace=True)
        except OSError as error:
            progress.warn(f"headless: --report {where}: {error}")
    if isinstance(progress, Lines):
        progress.send("report", **report)
    elif not where:
        print(json.dumps(report, ensure_ascii=False), file=out, flush=True)


@contextlib.contextmanager
def stop_on_signals() -> Iterator[None]:
    """The first Ctrl-C or SIGTERM asks ComfyUI to stop, which it does between two steps; the next stops at once."""
    asked: list[int] = []

    def handler(number, frame):
        management = sys.modules.get("comfy.model_management")
        if asked or management is None:
            raise KeyboardInterrupt
        asked.append(number)
        management.interrupt_current_processing()
        print("Stopping at the next step; Ctrl-C again stops at once.", file=sys.stderr, flush=True)

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, handler) for number in numbers]
    try:
        yield
    finally:
        for number, own in zip(numbers, before, strict=True):
            signal.signal(number, own)


def open_host(place: Place, arguments: Sequence[str], verbose: bool) -> Host:
    """ComfyUI as its main.py would start it, without a server: arguments, model folders, device."""
    if verbose:
        logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    given = list(arguments)
    if place.base is not None and "--base-directory" not in given:
        for name in FOLDERS:
            (place.base / name).mkdir(parents=True, exist_ok=True)
        given += ["--base-directory", str(place.base)]
    if "--cpu" not in given and not torch.accelerator.is_available():
        given.append("--cpu")
    host = Host(place.comfy, PACK, given, dynamic="--cpu" not in given and torch.version.cuda is not None)
    _add_model_folders(host, place.comfy)
    # How another process opens the same one, whose device may be another.
    base = place.base and str(place.base)
    host.opened_as = {"comfy": str(place.comfy), "base": base, "arguments": list(arguments)}
    return host


def _add_model_folders(host, comfy: Path) -> None:
    """What main.py adds: extra_model_paths.yaml, and the folders of output/ that loaders list."""
    from utils.extra_config import load_extra_path_config

    if (comfy / "extra_model_paths.yaml").is_file():
        load_extra_path_config(str(comfy / "extra_model_paths.yaml"))
    for kind in ("checkpoints", "clip", "vae", "diffusion_models", "loras"):
        host.folder_paths.add_model_folder_path(kind, str(Path(host.folder_paths.get_output_directory(), kind)))


def run(host, options, lists: Lists, wanted: dict, progress: Silent, report: dict) -> None:
    """One command on an open host; what it did goes into the report, whatever comes of it."""
    import comfy.model_management
    import comfy.utils
    from comfyui_version import __version__

    session = Session(host, options, lists, wanted, progress)
    listeners = host.module("nodes.host.progress").listeners
    report |= {
        "versions": {"mace": host.module("mace").__version__, "comfyui": __version__, "torch": torch.__version__},
        "device": str(comfy.model_management.get_torch_device()),
    }

    def step(value, total, preview, node_id=None):
        comfy.model_management.throw_exception_if_processing_interrupted()
        progress.step(value, total)

    shown, hook = comfy.utils.PROGRESS_BAR_ENABLED, comfy.utils.PROGRESS_BAR_HOOK
    comfy.utils.set_progress_bar_enabled(False)
    comfy.utils.set_progress_bar_global_hook(step)
    listeners.append(progress.say)
    try:
        COMMANDS[options.command](session)
    finally:
        listeners.remove(progress.say)
        comfy.utils.set_progress_bar_global_hook(hook)
        comfy.utils.set_progress_bar_enabled(shown)
        comfy.model_management.interrupt_current_processing(False)
        report |= {"files": session.files, "stages": session.stages, **session.result}
