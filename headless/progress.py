"""What is seen of a command while it runs: a bar on a terminal, lines of JSON for a program, or nothing."""

import json
import sys
import time
from typing import TextIO

from tqdm import tqdm


class Silent:
    """Nothing but warnings."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def stage(self, title: str) -> None:
        """Another part of the work begins."""

    def step(self, value: float, total: float) -> None:
        """So much of a part is done."""

    def say(self, text: str) -> None:
        """What a stage says of itself."""

    def estimate(self, seconds: dict[str, float], lines: list[str]) -> None:
        """How long it will take, by part of the work, before it starts."""

    def cluster(self, event: dict) -> None:
        """What became of a unit of work or of a worker, as `cluster.pool` tells it."""
        told = {"unit": ("again",), "worker": ("lost", "failed", "waiting")}
        if event["state"] in told[event["event"]]:
            about = ", ".join(event.get("concepts", ())) or f"{event.get('node', '')} {event.get('pid', '')}".strip()
            self.warn(f"{event['event']} {event['state']}: {about}: {event.get('error', '')}".rstrip(": "))

    def warn(self, text: str) -> None:
        """What is to be read in any case."""
        print(text, file=self.stream, flush=True)

    def close(self) -> None:
        """The end."""


class Bars(Silent):
    """One bar, the running part's, on a terminal."""

    def __init__(self, stream: TextIO):
        super().__init__(stream)
        self._bar: tqdm | None = None
        self._title, self._said = "", ""

    def stage(self, title: str) -> None:
        self.close()
        self._title, self._said = title, ""

    def step(self, value: float, total: float) -> None:
        if self._bar is not None and (self._bar.total != total or value < self._bar.n):
            self.close()
        if self._bar is None:
            self._bar = tqdm(total=total, desc=self._title, file=self.stream, leave=True, dynamic_ncols=True)
            self._bar.set_postfix_str(self._said)
        self._bar.update(value - self._bar.n)

    def say(self, text: str) -> None:
        *lines, self._said = text.splitlines() or [""]
        for line in lines:
            self.warn(line)
        if self._bar is not None:
            self._bar.set_postfix_str(self._said)

    def estimate(self, seconds: dict[str, float], lines: list[str]) -> None:
        for line in lines:
            self.warn(line)

    def warn(self, text: str) -> None:
        tqdm.write(text, file=self.stream)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class Lines(Silent):
    """A JSON object a line: {"event": "stage" | "progress" | "text" | "estimate" | "warning" | "report", ...}.

    Each has "elapsed", in seconds since the start.
    """

    def __init__(self, stream: TextIO):
        super().__init__(stream)
        self._begun, self._title = time.monotonic(), ""

    def stage(self, title: str) -> None:
        self._title = title
        self.send("stage", stage=title)

    def step(self, value: float, total: float) -> None:
        self.send("progress", stage=self._title, value=value, maximum=total)

    def say(self, text: str) -> None:
        self.send("text", stage=self._title, text=text)

    def estimate(self, seconds: dict[str, float], lines: list[str]) -> None:
        self.send("estimate", seconds=seconds, lines=lines)

    def cluster(self, event: dict) -> None:
        self.send(**event)

    def warn(self, text: str) -> None:
        self.send("warning", text=text)

    def send(self, event: str, **values) -> None:
        """One line."""
        record = {"event": event, "elapsed": round(time.monotonic() - self._begun, 3), **values}
        print(json.dumps(record, ensure_ascii=False), file=self.stream, flush=True)


def shown(as_lines: bool, out: TextIO) -> Silent:
    """What fits: lines of JSON on `out` where they are asked for, bars where stderr is a terminal, else nothing."""
    if as_lines:
        return Lines(out)
    return Bars(sys.stderr) if sys.stderr.isatty() else Silent(sys.stderr)
