"""What Erase Concepts erases and keeps along its slider from gentle to strong: on the demo model.

    python dev.py run python -m benchmarks.gentle_strong

The node itself, with the demo model's preset and its vocabulary prior, and once with Table 10's, erases one thing; at
each place of the slider the judge looks at pictures of the thing, its synonyms and other things, and at what the base
model draws right of them. Only what the base draws right counts. Also how far the pictures of the other things moved:
the mean absolute difference to the base model's, of 1. Rows are recorded as they are found, and not measured again.
The last line is one JSON object with all rows.
"""

import json
import tempfile
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from torch import Tensor

from benchmarks.erasure.bench import PRESET, Bench
from benchmarks.erasure.questions import TEMPLATES, Question, asked
from benchmarks.measure import log
from devtools.inprocess import REPO, open_host

LEANS = (-1.0, -0.5, 0.0, 0.5, 1.0)
TARGET, SEEDS, OTHERS = "dog", 3, 25
PAPER = "paper (Table 10)"
RESULT = REPO / "benchmarks/results/gentle_strong.json"


def others_by(bench: Bench, model, questions: Sequence[Question]) -> Tensor:
    """Pictures of the other things, by a model."""
    return bench.studio.draw(model, [own.prompt for own in questions], [own.seed for own in questions])


def measured(bench: Bench, preset: str, lean: float, groups: dict, before: Tensor) -> dict:
    """One place of the slider. before: the base model's pictures of the other things."""
    start = time.perf_counter()
    model = bench.host.run(
        "MACE_EraseConcepts", model=bench.model, clip=bench.clip, vae=bench.vae, preset=preset, width=64, height=64,
        seed=0, strengths="", prior=bench.prior, words=f"{TARGET} -> sky", gentle_strong=lean,
    )[0]  # fmt: skip
    seconds = time.perf_counter() - start
    shares = bench.examiner.shares(bench.model, model, groups)
    moved = (others_by(bench, model, groups["others"]) - before).abs().mean()
    return {"preset": preset, "lean": lean, **shares, "moved": round(float(moved), 4), "seconds": round(seconds, 1)}


def main() -> None:
    """The command."""
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(open_host(Path(folder)))
        words = bench.words["concepts"]
        kept = [name for name in words if name != TARGET][:: len(words) // OTHERS]
        groups = {
            "itself": asked([TARGET], seeds=SEEDS),
            "synonyms": asked(dict.fromkeys(bench.synonyms[TARGET], TARGET), seeds=SEEDS),
            "others": asked(kept, TEMPLATES[:1]),
        }
        before = others_by(bench, bench.model, groups["others"])
        rows = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else []
        known = {(row["preset"], row["lean"]) for row in rows}
        # The middle first, which trains: every other place is a solve.
        for preset, lean in sorted(product((PRESET, PAPER), LEANS), key=lambda place: abs(place[1])):
            if (preset, lean) in known:
                continue
            rows.append(measured(bench, preset, lean, groups, before))
            log(rows[-1])
            rows.sort(key=lambda row: (row["preset"], row["lean"]))
            RESULT.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
