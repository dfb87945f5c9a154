"""Erasing measured as the paper does it, on the demo model in the real host.

    python dev.py run python -m benchmarks.erasure --task all [--report]
    python dev.py run python -m benchmarks.erasure --quick

Every cell (an erasure by one method, and what the judge sees in the pictures that it draws) is kept in
benchmarks/results/erasure when it is done, and not repeated; --report writes docs/results.md of what is there. The base
model and all methods draw from the same noise. Tasks may run at the same time, in processes of their own. The last line
is one JSON object.
"""

import argparse
import json
import tempfile
from pathlib import Path

from benchmarks.erasure.bench import Bench
from benchmarks.erasure.figures import FIGURES
from benchmarks.erasure.methods import FUSED, METHODS
from benchmarks.erasure.records import RESULTS, Records
from benchmarks.erasure.report import write_report
from benchmarks.erasure.studies import STUDIES
from benchmarks.erasure.tasks import COMPARISONS, Plan
from devtools.inprocess import REPO, open_host

# Tasks, and what of them.
QUICK = ("objects", "leak", "shared"), Plan((FUSED, "UCE"), ("dog",))
TASKS = {**COMPARISONS, **STUDIES, **FIGURES}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", action="append", choices=(*TASKS, "all"), default=[])
    parser.add_argument(
        "--method", action="append", choices=METHODS, help="a method to compare, in place of the task's own"
    )
    parser.add_argument("--only", action="append", help="the name of an erasure of the task, in place of all of them")
    parser.add_argument("--report", action="store_true", help="write docs/results.md of what is recorded")
    parser.add_argument("--quick", action="store_true", help="a slice in five minutes, which is not recorded")
    parser.add_argument("--clip", type=Path, help="folder of a CLIP model that scores all pictures too")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder of results")
    options = parser.parse_args()
    chosen = list(TASKS) if "all" in options.task else list(dict.fromkeys(options.task))
    plan = Plan(tuple(options.method) if options.method else None, options.only or None)
    if options.quick:
        chosen, plan = QUICK
    if chosen:
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(open_host(Path(folder)), clip=options.clip)
            kept = Path(folder) if options.quick else options.results
            for name in chosen:
                TASKS[name](bench, Records(name, kept), plan)
    recorded = {name: Records(name, options.results) for name in TASKS}
    if options.report:
        write_report({name: records.cells for name, records in recorded.items()}, REPO / "docs" / "results.md")
    print(json.dumps({name: len(records.cells) for name, records in recorded.items()}))


if __name__ == "__main__":
    main()
