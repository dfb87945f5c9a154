"""Erasing on a Ray cluster of one machine, at small size: units a second for 1, 2 and 4 workers, bytes moved a unit.

    python dev.py run python -m benchmarks.cluster [--workers 1 2 4] [--concepts 8]

Each row is one training of the demo model (64 pixels, 2 pictures, 6 steps, one concept a unit) by the headless command
on a cluster of its own, which sends results to it. On two cores four workers have nothing to win: what is measured is
what a unit costs besides its own work. The text layers of the demo model that change nothing are skipped, so that units
are short. The last line is one JSON object.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import load, log
from devtools.cache import REPO
from devtools.overlay import overlay

NAMES = "dog cat ship horse frog deer truck bird".split()
SMALL = ("--width", 64, "--height", 64, "--images", 2, "--image-steps", 2, "--seed", 3, "--steps", 6, "--rank", 2)
# One concept a unit, so that there is something to share out.
ONE_BY_ONE = ("--unit-moments", 1, "--unit-loras", 1)


def cluster_python(say=log) -> Path:
    """The Python of this environment with Ray beside it."""
    return overlay(Path(sys.executable), REPO / "requirements-cluster.txt", "cluster", say)


def environment() -> dict[str, str]:
    """Ours, with quick text layers; in one thread, as in the workers, so that sums round alike."""
    return {**os.environ, "PYTHONPATH": str(REPO / "tests/cluster_quick"), "OMP_NUM_THREADS": "1"}


def command(python: Path, base: Path, *arguments) -> list[str]:
    """The headless command with a base directory of its own, which is made."""
    for name in ("custom_nodes", "models", "input", "output", "user"):
        (base / name).mkdir(parents=True, exist_ok=True)
    comfy = ("--", "--cpu", "--base-directory", base)
    return list(map(str, [python, REPO / "headless", *arguments, "--json-progress", *comfy]))


def run(python: Path, folder: Path, workers: int, concepts: int) -> list[dict]:
    """The events of one training. Raises RuntimeError where it failed."""
    (folder / "list.txt").write_text("\n".join(f"{name} -> sky" for name in NAMES[:concepts]))
    training = command(
        python, folder, "train", "--model", os.environ["MACE_DEMO_CHECKPOINT"], "--concepts", folder / "list.txt",
        "--out", folder / "out.safetensors", *SMALL, *ONE_BY_ONE, "--ray", "local", "--ray-workers", workers,
    )  # fmt: skip
    done = subprocess.run(training, env=environment(), stdout=subprocess.PIPE, text=True)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    if done.returncode:
        raise RuntimeError(events[-1]["error"] if events else "it did not start")
    return events


def row(events: list[dict], workers: int) -> dict:
    """What the events of a training say of its units, by kind."""
    ready = [event["elapsed"] for event in events if event["event"] == "worker"]
    found = {"workers": workers, "first_ready_s": ready[0], "all_ready_s": ready[-1] if len(ready) == workers else None}
    for kind in ("moments", "loras"):
        own = [event for event in events if event["event"] == "unit" and event["kind"] == kind]
        begun = [event["elapsed"] for event in own if event["state"] == "started"]
        done = [event for event in own if event["state"] == "now"]
        wall, work = done[-1]["elapsed"] - begun[0], sum(event["seconds"] for event in done)
        found[kind] = {
            "units": len(done),
            "units_a_second": len(done) / wall,
            "work_s_a_unit": work / len(done),
            "bytes_a_unit": round(sum(event["bytes"] for event in done) / len(done)),
        }
        if workers == 1:
            found[kind]["besides_s_a_unit"] = (wall - work) / len(done)
    return {**found, "bytes_sent": events[-1]["cluster"]["bytes_sent"], "total_s": events[-1]["total_seconds"]}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="+", default=(1, 2, 4))
    parser.add_argument("--concepts", type=int, default=len(NAMES))
    options = parser.parse_args()
    python, busy, rows = cluster_python(), load(), []
    for workers in options.workers:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(row(run(python, Path(folder), workers, options.concepts), workers))
        log(str(rows[-1]))

    def rounded(value):
        if isinstance(value, dict):
            return {name: rounded(own) for name, own in value.items()}
        return round(value, 4) if isinstance(value, float) else value

    print(json.dumps({"cores": os.cpu_count(), "load": busy, "rows": [rounded(own) for own in rows]}))


if __name__ == "__main__":
    main()
