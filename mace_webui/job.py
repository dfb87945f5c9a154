"""One erasure as a process of its own: started, followed line by line, stopped. Standard library only."""

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

PACK = Path(__file__).resolve().parent.parent
WINDOWS = sys.platform == "win32"
# Lines of the log that are kept.
MOST_LINES = 400
# Seconds that a process has to stop between two steps.
GRACE = 60.0
STOPPED = 130
# What would lead the other environment's Python astray, or name a ComfyUI of somebody else.
NOT_OURS = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "MACE_COMFYUI", "COMFYUI_PATH")


@dataclass
class State:
    """What is known of a job. stage: what runs, value of maximum done.  report: the command's, when it has ended."""

    stage: str = ""
    value: float = 0.0
    maximum: float = 0.0
    lines: deque = field(default_factory=lambda: deque(maxlen=MOST_LINES))
    report: dict | None = None
    running: bool = False


class Job:
    """Runs one headless command at a time.

    command: what starts the headless command, for tests another Python.
    """

    def __init__(self, command: list | None = None):
        self._command = command or [sys.executable, str(PACK / "headless")]
        self._lock = threading.Lock()
        self._process: subprocess.Popen | None = None
        self.state = State()
        atexit.register(self.stop)

    def start(self, arguments: list, concepts: str, comfyui: str = "", device: tuple = ()) -> None:
        """Start a command that reads `concepts` from standard input. comfyui: a ComfyUI folder, "" for the pinned one.

        device: arguments for ComfyUI. Raises RuntimeError while one runs.
        """
        with self._lock:
            if self.state.running:
                raise RuntimeError("an erasure is running: wait for it, or cancel it")
            variables = {name: value for name, value in os.environ.items() if name not in NOT_OURS}
            variables["PYTHONIOENCODING"] = "utf-8"
            if comfyui:
                variables["COMFYUI_PATH"] = comfyui
            group = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP} if WINDOWS else {"start_new_session": True}
            self._process = subprocess.Popen(
                [*self._command, *map(str, arguments), "--json-progress", *(["--", *device] if device else [])],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=variables, cwd=str(PACK),
                encoding="utf-8", errors="replace", **group,
            )  # fmt: skip
            self.state = State(stage="Start", running=True)
            threading.Thread(target=self._follow, args=(self._process, self.state, concepts), daemon=True).start()

    def _follow(self, process: subprocess.Popen, state: State, concepts: str) -> None:
        errors = threading.Thread(target=self._log, args=(process.stderr, state), daemon=True)
        errors.start()
        try:
            process.stdin.write(concepts)
            process.stdin.close()
        except OSError:
            pass  # it ended at once, and says why
        for line in process.stdout:
            try:
                self._take(json.loads(line), state)
            except (ValueError, KeyError, TypeError):
                state.lines.append(line.rstrip())
        errors.join()
        code = process.wait()
        if state.report is None:
            last = state.lines[-1] if state.lines else f"it ended with exit code {code}"
            # Also where the signal came before anything could answer it.
            stopped = code in (STOPPED, -signal.SIGINT)
            state.report = {"exit_code": code or 1, "status": "stopped" if stopped else "failed", "error": last}
        state.running = False

    @staticmethod
    def _log(stream, state: State) -> None:
        for line in stream:
            if line.strip():
                state.lines.append(line.rstrip())

    @staticmethod
    def _take(event: dict, state: State) -> None:
        """One line of --json-progress."""
        kind = event["event"]
        if kind == "stage":
            state.stage, state.value, state.maximum = event["stage"], 0.0, 0.0
            state.lines.append(event["stage"])
        elif kind == "progress":
            state.value, state.maximum = event["value"], event["maximum"]
        elif kind == "report":
            state.report = event
        else:
            said = event["lines"] if kind == "estimate" else event["text"].splitlines()
            state.lines.extend(f"  {line}" for line in said)

    def stop(self, grace: float = GRACE) -> None:
        """Ask the process to stop, which it does between two steps; then end it and what it started."""
        process = self._process
        if process is None or process.poll() is not None:
            return
        if WINDOWS:
            subprocess.run(["taskkill", "/T", "/F", "/PID", str(process.pid)], capture_output=True, check=False)
            return
        process.send_signal(signal.SIGINT)
        try:
            process.wait(grace)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
