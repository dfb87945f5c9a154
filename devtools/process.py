"""Starting child processes so that everything they start can be stopped again. Standard library only."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

WINDOWS = sys.platform == "win32"


def start(command, **options) -> subprocess.Popen:
    """Start `command` as the leader of its own group, so that a terminal's Ctrl-C reaches only us.

    We then pass it on once, in order: two interrupts would cut short the child's own tidying up."""
    if WINDOWS:
        options["creationflags"] = subprocess.CREATE_NEW_PROCESS_GROUP
    else:
        options["start_new_session"] = True
    return subprocess.Popen([str(part) for part in command], **options)


def descendants(pid: int) -> list[int]:
    """The process ids below `pid`, in whatever group they are now. POSIX only."""
    parents: dict[int, int] = {}
    if Path("/proc/self/stat").exists():
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    # The name in brackets may itself hold spaces and brackets: count from the last one.
                    fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
                except OSError:
                    continue
                parents[int(entry.name)] = int(fields[1])
    else:
        listing = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=False)
        for line in listing.stdout.splitlines():
            child, parent = line.split()
            parents[int(child)] = int(parent)
    found, level = [], [pid]
    while level:
        level = [child for child, parent in parents.items() if parent in level]
        found += level
    return found


def _signal(pid: int, number: int, group: bool) -> None:
    try:
        (os.killpg if group else os.kill)(pid, number)
    except (ProcessLookupError, PermissionError):
        pass


def stop(process: subprocess.Popen, grace: float = 10.0) -> None:
    """Stop `process` (made by `start`) and everything below it: interrupt, terminate, then kill.

    Returns when the process has ended. Grandchildren that moved to a group of their own are ended too."""
    if WINDOWS:
        if process.poll() is None:
            subprocess.run(["taskkill", "/T", "/F", "/PID", str(process.pid)], capture_output=True, check=False)
            process.wait()
        return
    below = descendants(process.pid)
    for number, seconds in ((signal.SIGINT, grace), (signal.SIGTERM, grace / 2)):
        if process.poll() is not None:
            break
        # The leader alone: it decides in which order its own children end.
        _signal(process.pid, number, group=False)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            below += [pid for pid in descendants(process.pid) if pid not in below]
    _signal(process.pid, signal.SIGKILL, group=True)
    process.wait()
    for pid in below:
        _signal(pid, signal.SIGKILL, group=False)


def raise_on_signals() -> None:
    """Make SIGINT and SIGTERM raise KeyboardInterrupt, so that every `finally` above runs.

    Set even where SIGINT came in ignored, as a shell script's background jobs have it. Once one has come,
    more of them are ignored: the first is already ending everything."""

    def handler(number, frame):
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt(number)

    numbers = [signal.SIGINT, signal.SIGTERM]
    # An ignored SIGHUP is nohup's doing, and meant.
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    for each in numbers:
        signal.signal(each, handler)


def call(command, grace: float = 30.0, **options) -> int:
    """Run `command` to its end and return its exit code; stop it and all below it on any exception.

    `grace` is how many seconds it has to tidy up: it may be stopping a host of its own."""
    process = start(command, **options)
    try:
        while True:
            try:
                return process.wait(0.5)
            except subprocess.TimeoutExpired:
                continue
    finally:
        stop(process, grace)


def call_interactive(command, **options) -> int:
    """Run `command` in the terminal's foreground, as a shell would: Ctrl-C is the child's to handle."""
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        # The child must not inherit the ignored signal.
        if not WINDOWS:
            options["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
        process = subprocess.Popen([str(part) for part in command], **options)
        try:
            return process.wait()
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
    finally:
        signal.signal(signal.SIGINT, previous)


def call_logged(command, log: Path, say, **options) -> tuple[int, list[str]]:
    """Run `command` with its output appended to `log`, telling every half minute that it is still at work.

    Returns (exit code, its last output lines)."""
    with open(log, "ab") as file:
        file.write(("$ " + " ".join(str(part) for part in command) + "\n").encode())
        file.flush()
        begin = file.tell()
        process = start(command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, **options)
        started = told = time.monotonic()
        try:
            while process.poll() is None:
                time.sleep(0.2)
                if time.monotonic() - told >= 30:
                    told = time.monotonic()
                    say(f"  ... {told - started:.0f} s: {_last_lines(log, begin, 1)[0][:90]}")
        finally:
            stop(process)
    return process.returncode, _last_lines(log, begin, 12)


def _last_lines(log: Path, begin: int, count: int) -> list[str]:
    with open(log, "rb") as file:
        file.seek(begin)
        text = file.read().decode(errors="replace").replace("\r", "\n")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-count:] or [""]
