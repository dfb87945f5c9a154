"""The workers of a Ray cluster, and who does which unit: each once, a lost worker's again, a failing one's not for
ever.

A unit belongs to this run from its claim in the folder to its result, whatever becomes of the workers that try it.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from .folder import Folder
from .units import Unit

# How often a unit is tried that fails by itself, and one whose workers are lost.
TRIES, LOSSES = 2, 3
# Seconds between two looks at what was asked of us and at others' claims; and without a worker until that is said.
LOOK, ALONE = 0.5, 60.0


@dataclass
class Outcome:
    """What became of a unit. state: "before" (its result was there), "now", "elsewhere" (another run's, meanwhile) or
    "failed".  seconds, bytes: of ours.  error: the last one's words."""

    unit: Unit
    state: str = ""
    seconds: float = 0.0
    bytes: int = 0
    tries: int = 0
    losses: int = 0
    error: str = ""

    @property
    def done(self) -> bool:
        """Whether there is a result."""
        return self.state in ("before", "now", "elsewhere")


@dataclass
class Hand:
    """One worker. about: what it says of itself, None until it has opened the model.  job: what it is at."""

    actor: object
    about: dict | None = None
    job: Outcome | None = None
    losses: int = 0


class Pool:
    """count workers. opening: see `Worker`.  told(event): of units and workers, as plain values.  check(): raises where
    we are to stop."""

    def __init__(self, ray, pack: Path, opening: dict, count: int, told: Callable[[dict], None], check: Callable):
        self._ray, self._told, self._check = ray, told, check
        kind = ray.remote(_actor_class())
        gpus = 1 if ray.cluster_resources().get("GPU", 0) else 0
        options = {"num_cpus": 1, "num_gpus": gpus, "max_restarts": -1, "max_task_retries": 0}
        self.hands = [Hand(kind.options(**options).remote(str(pack), opening)) for _ in range(count)]
        self._waits: dict = {}
        # Workers that are to be asked to open the model again, and when.
        self._later: list[tuple[float, Hand]] = []
        self._problem, self._ended = "", lambda: None
        self._alone = time.monotonic() + ALONE
        self.lost = 0
        for hand in self.hands:
            self._ask(hand, hand.actor.open.remote())

    def close(self) -> None:
        """End the workers, whatever they are at."""
        for hand in self.hands:
            self._ray.kill(hand.actor, no_restart=True)

    def first(self) -> Hand:
        """A worker that has opened the model. Raises RuntimeError where none can."""
        while True:
            ready = [hand for hand in self.hands if hand.about]
            if ready:
                return ready[0]
            self._look({})

    def estimate(self, *given) -> dict:
        """What a worker measures; see `Worker.estimate`. Raises what it raises there."""
        for _ in range(LOSSES):
            hand = self.first()
            ref = hand.actor.estimate.remote(*given)
            while not self._ray.wait([ref], timeout=LOOK)[0]:
                self._check()
            try:
                return self._ray.get(ref)
            except self._ray.exceptions.RayTaskError as error:
                raise getattr(error, "cause", None) or error from None
            except self._ray.exceptions.RayError as error:
                self._lost(hand, error, {})
        raise RuntimeError(f"{LOSSES} workers were lost while they measured what a picture takes")

    def shared(self, value):
        """A value for many calls, which each machine is sent once."""
        return self._ray.put(value)

    def run(
        self, units: Sequence[Unit], folder: Folder, given: Callable[[Unit], tuple], step: Callable[[int, int], None]
    ) -> list[Outcome]:
        """Do units, in their order; what became of each. given(unit): what `Worker.work` takes.  step(concepts, of all)
        when a unit has ended."""
        outcomes = [Outcome(unit) for unit in units]
        self._ended = partial(_count, outcomes, step)
        for outcome in outcomes:
            self._check()
            if folder.holds(outcome.unit):
                folder.clear(outcome.unit)
                self._end(outcome, "before", folder)
        left = deque(outcome for outcome in outcomes if not outcome.state)
        try:
            while not all(outcome.state for outcome in outcomes):
                self._give(left, folder, given)
                self._look({"folder": folder, "left": left})
        finally:
            for hand in self.hands:
                hand.job = None
            for outcome in outcomes:
                folder.release(outcome.unit)
        return outcomes

    def _give(self, left: deque, folder: Folder, given: Callable) -> None:
        """Give every worker that has nothing to do a unit that nobody else does."""
        idle = [hand for hand in self.hands if hand.about and hand.job is None]
        for _ in range(len(left)):
            if not idle:
                return
            outcome = left.popleft()
            if not folder.claim(outcome.unit):
                # Somebody else is at it; its result may come, or its claim may end.
                left.append(outcome)
                if folder.file(outcome.unit).exists() and folder.holds(outcome.unit):
                    left.pop()
                    self._end(outcome, "elsewhere", folder)
                continue
            # Between our look at the results and the claim another run may have finished it.
            if folder.holds(outcome.unit):
                self._end(outcome, "elsewhere", folder)
                continue
            hand = idle.pop(0)
            hand.job = outcome
            outcome.tries += 1
            self._tell(outcome, "started", hand)
            self._ask(hand, hand.actor.work.remote(*given(outcome.unit)))

    def _ask(self, hand: Hand, ref) -> None:
        self._waits[ref] = hand

    def _look(self, run: dict) -> None:
        """Wait a little for any worker, and take what it says."""
        self._check()
        if not self.hands:
            raise RuntimeError(f"no worker is left: {self._problem}")
        if any(hand.about for hand in self.hands):
            self._alone = time.monotonic() + ALONE
        elif time.monotonic() > self._alone:
            self._alone = float("inf")
            self._told({"event": "worker", "state": "waiting", "error": "the cluster has no room for a worker yet"})
        now = time.monotonic()
        for entry in [entry for entry in self._later if entry[0] <= now]:
            self._later.remove(entry)
            self._ask(entry[1], entry[1].actor.open.remote())
        if not self._waits:
            time.sleep(LOOK)
            return
        for ref in self._ray.wait(list(self._waits), timeout=LOOK)[0]:
            hand = self._waits.pop(ref)
            try:
                found = self._ray.get(ref)
            except self._ray.exceptions.RayTaskError as error:
                self._failed(hand, error, run)
            except self._ray.exceptions.RayError as error:
                self._lost(hand, error, run)
            else:
                self._done(hand, found, run)

    def _done(self, hand: Hand, found: dict, run: dict) -> None:
        if hand.about is None:
            hand.about, hand.losses = found, 0
            self._told({"event": "worker", "state": "ready", **found})
            return
        outcome, hand.job = hand.job, None
        if outcome is None:
            return
        folder = run["folder"]
        if found["result"] is not None:
            folder.put(folder.file(outcome.unit).name, lambda path: path.write_bytes(found["result"]))
        elif not folder.arrived(outcome.unit):
            outcome.error = f"its result is not in {folder.path}: --shared is to be a folder that all machines see"
            self._again(outcome, outcome.tries >= TRIES, hand, run)
            return
        outcome.seconds, outcome.bytes = found["seconds"], found["bytes"]
        self._end(outcome, "now", folder, hand)

    def _failed(self, hand: Hand, error: Exception, run: dict) -> None:
        """A call raised."""
        cause = getattr(error, "cause", None) or error
        said = f"{type(cause).__name__}: {cause}"
        if hand.about is None:
            self._drop(hand, said)
            return
        outcome, hand.job = hand.job, None
        if outcome is not None:
            outcome.error = said
            self._again(outcome, outcome.tries >= TRIES, hand, run)

    def _lost(self, hand: Hand, error: Exception, run: dict) -> None:
        """A worker's process or machine is gone; Ray starts another where there is room."""
        if hand.about is None and isinstance(error, self._ray.exceptions.ActorUnavailableError):
            # It is being started again.
            self._later.append((time.monotonic() + LOOK, hand))
            return
        said = " ".join(str(error).split())[:300]
        outcome, hand.job = hand.job, None
        self.lost += 1
        hand.losses += 1
        self._told({"event": "worker", "state": "lost", **(hand.about or {})})
        hand.about = None
        if outcome is not None:
            outcome.losses += 1
            # Not its own failure, unless it happens again and again.
            outcome.tries -= 1
            outcome.error = f"its worker was lost: {said}"
            self._again(outcome, outcome.losses >= LOSSES, hand, run)
        if hand.losses >= LOSSES:
            self._drop(hand, said)
            return
        self._later.append((time.monotonic() + LOOK, hand))

    def _drop(self, hand: Hand, said: str) -> None:
        """Go on without a worker that cannot open the model."""
        self._problem = said
        self._told({"event": "worker", "state": "failed", "error": said})
        self.hands.remove(hand)
        self._ray.kill(hand.actor, no_restart=True)

    def _again(self, outcome: Outcome, enough: bool, hand: Hand, run: dict) -> None:
        if enough:
            self._end(outcome, "failed", run["folder"], hand)
            return
        self._tell(outcome, "again", hand)
        run["left"].appendleft(outcome)

    def _end(self, outcome: Outcome, state: str, folder: Folder, hand: Hand | None = None) -> None:
        outcome.state = state
        if outcome.done:
            outcome.error = ""
        folder.release(outcome.unit)
        self._tell(outcome, state, hand)
        self._ended()

    def _tell(self, outcome: Outcome, state: str, hand: Hand | None) -> None:
        event = {"event": "unit", "state": state, "kind": outcome.unit.kind, "key": outcome.unit.key}
        event |= {"concepts": outcome.unit.targets, **((hand and hand.about) or {})}
        event |= {"seconds": round(outcome.seconds, 3), "bytes": outcome.bytes} if state == "now" else {}
        self._told({**event, **({"error": outcome.error} if outcome.error else {})})


def _count(outcomes: Sequence[Outcome], step: Callable[[int, int], None]) -> None:
    ended = sum(len(outcome.unit.concepts) for outcome in outcomes if outcome.state)
    step(ended, sum(len(outcome.unit.concepts) for outcome in outcomes))


def _actor_class() -> type:
    """What runs in a worker's process. It is sent by value, for there is no pack on that process's path yet."""

    class MaceWorker:
        def __init__(self, pack: str, opening: dict):
            import sys

            sys.path.insert(0, pack)
            from headless.cluster.worker import Worker

            self._worker = Worker(opening)

        def open(self) -> dict:
            return self._worker.open()

        def work(self, *given) -> dict:
            return self._worker.work(*given)

        def estimate(self, *given) -> dict:
            return self._worker.estimate(*given)

    return MaceWorker
