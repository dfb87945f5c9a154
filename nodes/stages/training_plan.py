"""What a training takes of memory and time: said before it starts, and again when its first steps are timed."""

import time

from ..host.progress import duration, send_text, size

# Steps that are timed, after a first one that is slower.
TIMED = 2


class TrainingPlan:
    """What a run says of itself, on the running node and as one of the `lines` of its report."""

    def __init__(self, lines: list[str]):
        self._lines = lines
        self._line: str | None = None
        self._ended: list[float] = []
        self._is_timed = False
        self._concepts = self._left = self._each = 0
        self._seconds = 0.0

    def begin(self, concepts: int, left: int, most: int, each: int, seconds: float) -> None:
        """Say it from one step of one concept.

        left: steps to be made, of all concepts together.  most: concepts side by side.  each: bytes that one takes
        beside the model.  seconds: a step of one.
        """
        self._concepts, self._left, self._each, self._seconds = concepts, left, each, seconds
        self.begin_again(most, 0)

    def begin_again(self, most: int, made: int) -> None:
        """Say it for another `most`, after a group that did not fit had made so many steps, of all its concepts."""
        self._left -= made
        self._is_timed = False
        if not self._concepts:
            return
        # Side by side takes as long as one after the other at the most, and as long as one alone at the least.
        shortest, longest = (duration(self._left * self._seconds / count) for count in (most, 1))
        self._say(most, f"about {longest}" if shortest == longest else f"{shortest} to {longest}")

    def begin_group(self) -> None:
        """Steps are timed within one group."""
        self._ended.clear()

    def end_step(self, together: int, most: int) -> None:
        """After each step of `together` concepts. Says it again once, when TIMED of them are known."""
        if self._is_timed:
            return
        self._ended.append(time.perf_counter())
        if len(self._ended) > TIMED:
            seconds = (self._ended[-1] - self._ended[0]) / TIMED
            self._say(most, f"about {duration(self._left * seconds / together)}")
            self._is_timed = True

    def end_group(self, steps: int) -> None:
        """So many steps, of all its concepts together, are made."""
        self._left -= steps

    def _say(self, most: int, long: str) -> None:
        line = f"{self._concepts} concepts, {most} side by side, {size(most * self._each)} beside the model, {long}"
        send_text(line)
        if self._line in self._lines:
            self._lines[self._lines.index(self._line)] = line
        else:
            self._lines.append(line)
        self._line = line
