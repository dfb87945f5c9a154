"""What the benchmarks measure with: seconds, the machine's load, peak memory in a fresh process."""

import ctypes
import json
import os
import subprocess
import sys
import time
from pathlib import Path


def load():
    """The machine's load average when the run starts: above its cores, others were computing too."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def log(text):
    print(text, file=sys.stderr, flush=True)


class Rows:
    """A benchmark's rows: each is printed and written to its file as it is found, for a run may be stopped."""

    def __init__(self, out: Path):
        self.out, self.rows = out, []

    def add(self, row):
        self.rows.append(row)
        print(row, flush=True)
        self.out.write_text(json.dumps(self.rows, indent=1) + "\n", encoding="utf-8")

    def end(self):
        """Print the last line, all of them as one JSON object."""
        print(json.dumps(self.rows))


def timed(call, *arguments):
    """(seconds, result) of a call."""
    start = time.perf_counter()
    result = call(*arguments)
    return time.perf_counter() - start, result


def can_measure_memory():
    """Whether /proc tells the high-water mark and lets it be reset (Linux)."""
    return Path("/proc/self/clear_refs").exists()


def resident(name):
    """VmRSS (now) or VmHWM (high-water mark) of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {name} in /proc/self/status")


def peak_extra(call):
    """Bytes of this process's resident high-water mark during a call, above what lay in memory before it.

    For a process that did nothing of the kind before: what was freed but kept would not be seen.
    """
    if hasattr(ctypes.CDLL(None), "malloc_trim"):
        ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = resident("VmRSS")
    call()
    return resident("VmHWM") - before


def in_fresh_process(module, *arguments):
    """The number that `python -m module arguments` prints as its last line."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1])
