"""dev.py's commands. Standard library only; what needs packages is started inside the environment."""

import argparse
import os
import shutil
import signal
import sys
from pathlib import Path

from . import host as hosts
from . import process
from .cache import REPO, DevError, cache_root, host_base, locked, sha256_file
from .environment import REQUIREMENTS, Environment, missing_modules, prepare

COMPACT_MODEL = REPO / "assets" / "demo" / "demo_sd.safetensors"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "msedge", "microsoft-edge")

DESCRIPTION = "Makes an environment with a real ComfyUI (once, in a cache folder), then runs this pack in it."
# Processes of the whole test suite; each takes up to 3 GB, and as much again for a server it starts.
SIDE_BY_SIDE = 2
EPILOG = """environment variables:
  COMFYUI_PATH     an existing ComfyUI to use, with its own Python, instead of the pinned one
  XDG_CACHE_HOME   where the cache folder goes (default: the platform's usual place)
  MACE_BROWSER     a Chromium for the browser tests (default: the first one on PATH)

commands are given:
  MACE_COMFYUI           the folder of the ComfyUI in use
  MACE_DEMO_CHECKPOINT   the demo model as a full checkpoint
  MACE_BROWSER           the browser, when one was found
"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dev.py", description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    demo = commands.add_parser(
        "demo",
        help="erase a concept from the demo model and draw before and after",
        description="Erases a concept from the demo model in a real ComfyUI and leaves the "
        "erased checkpoint and a contact sheet in output/demo/.",
    )
    demo.add_argument("--ui", action="store_true", help="then leave ComfyUI running and print its address")
    demo.add_argument(
        "--model",
        choices=("sd", "sdxl", "sd3"),
        default="sd",
        help="the demo model (the default), or a small one of SDXL's or SD3's layout, erased from by Erase Concepts",
    )
    host = commands.add_parser(
        "host",
        help="start ComfyUI with this pack and the demo model",
        allow_abbrev=False,
        description="Starts ComfyUI with this pack until Ctrl-C. Arguments other than "
        "these are passed to ComfyUI's main.py.",
    )
    host.add_argument("--port", type=int, default=8188, help="port on 127.0.0.1 (default 8188; 0 for a free one)")
    commands.add_parser(
        "test",
        help="lint, then all tests",
        usage="dev.py test [pytest arguments]",
        description="Runs ruff over the repository, then pytest with the arguments given. Without any: all tests, in "
        "two processes side by side.",
    )
    commands.add_parser(
        "run",
        help="run a command inside the environment",
        usage="dev.py run COMMAND...",
        description="Runs a command inside the environment; its exit code is returned.",
    )
    return parser


def parse(argv: list[str]) -> argparse.Namespace:
    """The command, and in `arguments` what is passed on as it stands."""
    parser = build_parser()
    # argparse would reorder options it does not know, so what follows these two is not shown to it.
    passes_on = argv[:1] in (["test"], ["run"]) and argv[1:2] not in (["-h"], ["--help"])
    options, extra = parser.parse_known_args(argv[:1] if passes_on else argv)
    if extra and options.command != "host":
        parser.error("unrecognized arguments: " + " ".join(extra))
    options.arguments = argv[1:] if passes_on else extra
    if options.arguments[:1] == ["--"]:
        options.arguments = options.arguments[1:]
    return options


def main(argv=None) -> int:
    """Run one command; returns the process exit code."""
    options = parse(sys.argv[1:] if argv is None else list(argv))
    process.raise_on_signals()
    try:
        return {"demo": demo, "host": host, "test": test, "run": run}[options.command](options)
    except DevError as error:
        print(f"dev.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as interrupt:
        number = interrupt.args[0] if interrupt.args else signal.SIGINT
        print("dev.py: stopped.", file=sys.stderr)
        return 128 + number


def say(line: str) -> None:
    # Standard error, so that the output of `run` stays the command's own; flushed, so that a log shows it at once.
    print(line, file=sys.stderr, flush=True)


def demo_checkpoint(environment: Environment) -> Path:
    """The demo model as a full checkpoint in the cache, made when it is not there yet; it is another one when the
    compact file is."""
    if not COMPACT_MODEL.exists():
        raise DevError(f"{COMPACT_MODEL} is missing. Get it again: git checkout -- assets/demo")
    folder = cache_root() / f"demo-{sha256_file(COMPACT_MODEL)[:12]}"
    checkpoint = folder / hosts.CHECKPOINT_NAME
    if not checkpoint.exists():
        with locked(folder / "lock", say):
            if not checkpoint.exists():
                say("Expanding the demo model ...")
                # In the environment, which has numpy.
                command = [environment.python, "-m", "devtools.demo_model", COMPACT_MODEL, checkpoint]
                if process.call(command, env=environment.variables(), cwd=REPO):
                    raise DevError("The demo model cannot be expanded; the lines above say why.")
    return checkpoint


def find_browser() -> str | None:
    """The browser for the browser tests: MACE_BROWSER, else the first Chromium on PATH."""
    given = os.environ.get("MACE_BROWSER")
    if given:
        if not shutil.which(given):
            raise DevError(f"MACE_BROWSER is {given}, which is not a program.")
        return shutil.which(given)
    return next((found for found in map(shutil.which, BROWSERS) if found), None)


def inside() -> tuple[Environment, dict[str, str]]:
    """The environment, and the variables for a command in it."""
    environment = prepare(say)
    variables = environment.variables()
    # Threads that wait for each other sleep: spinning, as is OpenMP's usual way, takes more than twice as long as soon
    # as another process wants a core, such as the server that the tests start.
    variables.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    variables["MACE_DEMO_CHECKPOINT"] = str(demo_checkpoint(environment))
    browser = find_browser()
    if browser:
        variables["MACE_BROWSER"] = browser
    return environment, variables


def run(options) -> int:
    """`dev.py run COMMAND...`: the command's own exit code."""
    command = options.arguments
    if not command:
        raise DevError("run needs a command, such as: python dev.py run python -m pytest --version")
    _, variables = inside()
    # Found here, since Windows looks programs up on our PATH and not on the child's.
    program = shutil.which(command[0], path=variables["PATH"])
    if program is None:
        raise DevError(f"There is no command {command[0]} in the environment or on PATH.")
    call = process.call_interactive if sys.stdin and sys.stdin.isatty() else process.call
    return call([program, *command[1:]], env=variables)


def test(options) -> int:
    """`dev.py test`: lint, then the tests; both always run, and both count."""
    environment, variables = inside()
    missing = missing_modules(environment, ("pytest", "ruff", "safetensors", "PIL", "aiohttp", "peft", "playwright"))
    if missing:
        names = {"PIL": "pillow"}
        pins = [line.split(";")[0].strip() for line in REQUIREMENTS.read_text(encoding="utf-8").splitlines()]
        wanted = [next((pin for pin in pins if pin.startswith(names.get(name, name) + "==")), name) for name in missing]
        raise DevError(
            f"{environment.python} lacks {', '.join(missing)}. Install what the tests need:\n"
            f"  {environment.python} -m pip install {' '.join(wanted)}"
        )
    if "MACE_BROWSER" not in variables:
        say("No Chromium found (MACE_BROWSER or PATH): the browser tests cannot run.")
    beside = []
    cores = os.cpu_count() or 1
    if not options.arguments and cores > 1 and not missing_modules(environment, ("xdist",)):
        # Tests are small: a second core within one is of little use, and a third process on two cores is slower.
        variables.setdefault("OMP_NUM_THREADS", str(max(cores // SIDE_BY_SIDE, 1)))
        beside = ["-n", str(SIDE_BY_SIDE), "--dist", "loadfile", "--no-loadscope-reorder"]
    lint = process.call([environment.python, "-m", "ruff", "check", REPO], env=variables, cwd=REPO)
    # Only what lies in tests/ is a path to pytest: `-k nodes` must not be taken for the folder of that name.
    paths = [part for part in options.arguments if part.startswith("tests/") and (REPO / part.split("::")[0]).exists()]
    command = [environment.python, "-m", "pytest", "-c", REPO / "tests" / "pytest.ini", *beside, *options.arguments]
    tests = process.call(command + ([] if paths else [REPO / "tests"]), env=variables, cwd=REPO)
    if lint:
        say("dev.py: ruff found something (see above the tests).")
    return tests or lint


def host(options) -> int:
    """`dev.py host`: ComfyUI with this pack, its log in the terminal, until Ctrl-C."""
    environment, variables = inside()
    with hosts.start(
        environment.comfy,
        environment.python,
        host_base(),
        port=options.port,
        extra_args=options.arguments,
        checkpoint=Path(variables["MACE_DEMO_CHECKPOINT"]),
        env=variables,
        echo=True,
    ) as server:
        say(f"ComfyUI with this pack is at {server.url} (Ctrl-C stops it; log: {server.log_path})")
        return server.process.wait()


def demo(options) -> int:
    """`dev.py demo`: delegated to the environment, where images and websockets are at hand."""
    environment, variables = inside()
    missing = missing_modules(environment, ("aiohttp", "PIL"))
    if missing:
        raise DevError(f"{environment.python} lacks {', '.join(missing)}, which ComfyUI itself needs.")
    command = [environment.python, "-m", "devtools.demo", "--model", options.model, *["--ui"] * options.ui]
    return process.call(command, env=variables, cwd=REPO)
