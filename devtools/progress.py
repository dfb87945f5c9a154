"""One line of progress in the terminal. Standard library only."""

import shutil
import sys
import time

BRIEF = 1.0  # seconds


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


class ProgressLine:
    """Shows "stage  k/n  elapsed  time left". Call it with (stage, value, maximum); value None: it has begun.

    On a terminal the line is redrawn in place, and stays when its stage took a second or more; elsewhere a line
    is written every few seconds and at a new stage, except for stages that fly by. Close it (or leave its `with`
    block) to end the line."""

    def __init__(self, stream=None, every: float = 5.0):
        self.stream = stream or sys.stdout
        self.terminal = bool(getattr(self.stream, "isatty", lambda: False)())
        self.every = 0.1 if self.terminal else every
        self.begun = time.monotonic()
        self.stage, self.stage_begun, self.first = None, self.begun, 0
        self.shown_at, self.width, self.text = float("-inf"), 0, ""

    def __enter__(self):
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def __call__(self, stage: str, value: float | None, maximum: float | None) -> None:
        now = time.monotonic()
        new = stage != self.stage
        if new:
            self._end_stage()
            self.stage, self.stage_begun, self.first = stage, now, value or 0
        self.text = self._line(now, value, maximum)
        wait = self.every if not new else 0 if self.terminal else BRIEF
        if now - self.shown_at >= wait:
            self._show(now)

    def _line(self, now: float, value, maximum) -> str:
        parts = [self.stage]
        if value is not None and maximum:
            parts.append(f"{value:g}/{maximum:g}")
        parts.append(clock(now - self.begun) + " elapsed")
        done = (value or 0) - self.first
        if maximum and done > 0 and value < maximum:
            parts.append(clock((now - self.stage_begun) * (maximum - value) / done) + " left")
        return "  ".join(parts)

    def _show(self, now: float) -> None:
        if self.terminal:
            # A line that wraps could not be redrawn in place.
            text = self.text[: shutil.get_terminal_size().columns - 1]
            self.stream.write("\r" + text.ljust(self.width))
            self.width = len(text)
        else:
            self.stream.write(self.text + "\n")
        self.stream.flush()
        self.shown_at = now

    def _end_stage(self) -> None:
        if self.stage is None or not self.terminal:
            return
        now = time.monotonic()
        self._show(now)
        if now - self.stage_begun >= BRIEF:
            self.stream.write("\n")
            self.width = 0

    def close(self) -> None:
        """End the line."""
        self._end_stage()
        if self.terminal and self.width:
            self.stream.write("\n")
            self.width = 0
        self.stream.flush()
        self.stage = None
