"""Erasing from the small SD3 in closed form alone: its text ports, with and without own words and pooled text.

    python dev.py run python -m benchmarks.transformer [--search | --paper]

Judged as the demo model is in docs/results.md, with its questions; only what the model draws right before counts. The
prior's captions are a third of the demo model's, over its vocabulary. --search: other weights, asked with another seed.
--paper: Table 10's mu alone, without a prior. The last line is one JSON object with a row for each erasure; each row is
written to benchmarks/results as it is found.
"""

import argparse
import tempfile
from pathlib import Path

from benchmarks.erasure.questions import SEED
from benchmarks.erasure.tasks import TEN
from benchmarks.measure import Rows
from benchmarks.small_model import GRID, SD3, Small, Weights
from devtools.cache import REPO
from mace.method.refine import ALIKE, READING

MODEL = REPO / "assets/demo/demo_sd3.safetensors"
RESULTS = REPO / "benchmarks/results"
ALONE = ("dog", "ship", "bird", "horse", "automobile")
# What the search found.
FOUND: Weights = ("1e-4", "1e4", READING)
PAPER: Weights = ("0", "10", ALIKE)
# (own words, pooled text) of CFR Refine.
WAYS = (("off", False), ("off", True), ("on", False), ("on", True))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=MODEL, help="the compact file of the small SD3")
    parser.add_argument("--search", action="store_true", help="other weights, on two lists")
    parser.add_argument("--paper", action="store_true", help="Table 10's weights for an object, without a prior")
    options = parser.parse_args()
    kind = "_search" if options.search else "_paper" if options.paper else ""
    rows = Rows(RESULTS / f"transformer{kind}.json")
    with tempfile.TemporaryDirectory() as folder:
        small = Small(Path(folder), options.model.resolve(), SD3, not options.paper)
        lists = {name: (name,) for name in (ALONE[:1] if options.search else ALONE)} | {"ten": TEN}
        if not kind:
            rows.add({"model": "before", "drawn": small.drawn_before()})
        for name, erased in lists.items():
            groups = small.questions(erased, 500 if options.search else SEED)
            for weights in GRID if options.search else (PAPER if options.paper else FOUND,):
                for own_words, pooled in WAYS[3:] if options.search else WAYS:
                    model = small.refined(erased, weights, own_words, pooled)
                    about = dict(zip(("lambda1", "mu", "mu measures"), weights, strict=True))
                    about |= {"concepts": name, "own words": own_words, "pooled text": pooled}
                    rows.add(about | small.shares(model, groups))
    rows.end()


if __name__ == "__main__":
    main()
