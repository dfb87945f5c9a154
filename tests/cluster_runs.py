"""The headless command on Ray clusters of several processes, each run in a process of its own."""

import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

from benchmarks.cluster import cluster_python, command, environment
from devtools import process
from devtools.cache import REPO

LIMIT = 300


def ray_python() -> Path:
    """The Python of the tests' environment with Ray beside it, made without a word."""
    return cluster_python(lambda line: None)


class Run:
    """A command that is running. events: what it said so far."""

    def __init__(self, base: Path, *arguments):
        self.events: list[dict] = []
        started = command(ray_python(), base, *arguments)
        self._log = open(base / "stderr.txt", "wb")
        self.process = process.start(started, env=environment(), stdout=subprocess.PIPE, stderr=self._log, text=True)
        self.base = base
        # One that waits for ever is ended, and then fails for what it did not say.
        self._limit = threading.Timer(LIMIT, self.process.kill)
        self._limit.daemon = True
        self._limit.start()

    def said(self) -> Iterator[dict]:
        """Its events, as they come."""
        for line in self.process.stdout:
            self.events.append(json.loads(line))
            yield self.events[-1]

    def until(self, **values) -> dict:
        """The first event from here on that has these values."""
        for event in self.said():
            if values.items() <= event.items():
                return event
        raise AssertionError(f"it ended without {values}: {self.stderr}")

    def report(self) -> dict:
        """Its report, when it has ended."""
        for _ in self.said():
            pass
        code = self.process.wait(LIMIT)
        assert self.events and self.events[-1]["event"] == "report", self.stderr
        assert self.events[-1]["exit_code"] == code
        return self.events[-1]

    @property
    def stderr(self) -> str:
        """What it wrote on stderr."""
        return (self.base / "stderr.txt").read_text()

    def units(self, **values) -> list[tuple[str, ...]]:
        """The concepts of the units whose events had these values."""
        return [tuple(e["concepts"]) for e in self.events if e["event"] == "unit" and values.items() <= e.items()]

    def stop(self) -> None:
        """End it and all below it."""
        self._limit.cancel()
        process.stop(self.process)
        self._log.close()


class Nodes:
    """A cluster of several nodes, in processes of their own."""

    def __init__(self, count: int):
        self._process = process.start(
            [ray_python(), REPO / "tests/cluster_nodes.py", count],
            env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        self.address = self._process.stdout.readline().strip()

    def lose(self) -> None:
        """Kill a node."""
        self._say("lose")
        assert self._process.stdout.readline().strip() == "done"

    def _say(self, line: str) -> None:
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()

    def stop(self) -> None:
        """End all nodes."""
        self._say("end")
        self._process.wait(60)
        process.stop(self._process)


def copied(folder: Path, into: Path, kind: str) -> Path:
    """The units' results of one kind, in another folder."""
    into.mkdir(parents=True)
    for path in folder.glob(f"*.{kind}.safetensors"):
        shutil.copy(path, into)
    return into
