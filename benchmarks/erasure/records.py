"""What the tasks found: one file a task, one JSON line a cell, so that a run that was stopped goes on where it was."""

import json
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from benchmarks.erasure.questions import Answers, Question
from devtools.inprocess import REPO

RESULTS = REPO / "benchmarks" / "results" / "erasure"


class Records:
    """The cells of one task, by key. A cell that is added is on disk at once."""

    def __init__(self, task: str, folder: Path = RESULTS):
        self.path = folder / f"{task}.jsonl"
        self.cells: dict[str, dict] = {}
        if self.path.exists():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                cell = json.loads(line)
                self.cells[cell["key"]] = cell

    def __contains__(self, key: str) -> bool:
        return key in self.cells

    def add(self, key: str, **cell) -> None:
        """Keep a cell. Several processes may add to one file: a line is one write."""
        self.cells[key] = {"key": key, **cell}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(self.cells[key]) + "\n")


def told(questions: Sequence[Question], answers: Answers, base: Answers | None = None) -> dict:
    """Answers as they are kept, in the order of their questions.

    names: what was asked for.  right: a text of 0 and 1.  p: the probability of the name.  clip: as in
    Answers, where there is one.  moved, where the base
    model's answers to the same questions are given: squared distance of the judge's features from the base picture's,
    in units of the mean squared distance between two base pictures of the group.
    """
    found = {"names": [question.name for question in questions]}
    found["right"] = "".join(str(int(ok)) for ok in answers.right.tolist())
    found["p"] = rounded(answers.probability)
    if answers.clip is not None:
        found["clip"] = rounded(answers.clip)
    if base is not None:
        spread = 2 * (base.features - base.features.mean(dim=0)).square().sum(dim=1).mean()
        found["moved"] = rounded((answers.features - base.features).square().sum(dim=1) / spread)
    return found


def rounded(values: Tensor) -> list[float]:
    """Numbers as a short list."""
    return [round(value, 3) for value in values.tolist()]
