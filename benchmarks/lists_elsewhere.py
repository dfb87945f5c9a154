"""The weights for lists of any length on a model that they were not found on: the small SDXL.

    python dev.py run python -m benchmarks.lists_elsewhere

One, ten and a hundred things by CFR Refine with the preset *demo model, lists of any length*, own words too, and a
tenth of its lambda1 and ten times as much. The prior is made as the demo model's, with sentences, and steps aside for
each list. Judged as benchmarks.mass does, by every second of the things that stay. The last line is one JSON object
with a row for each refinement; each row is written to benchmarks/results as it is found.
"""

import argparse
import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.erasure.bench import LONG_LISTS
from benchmarks.erasure.tasks import mass_order
from benchmarks.mass import RESULTS, questions_of
from benchmarks.measure import Rows
from benchmarks.small_model import SDXL, Small
from devtools.cache import REPO
from devtools.demo_prior import captions, sentences

MODEL = REPO / "assets/demo/demo_sdxl.safetensors"
COUNTS, MULTIPLES = (10, 100, 1), (1, 10, 0.1)
# Of what stays, how many-th is asked for; pictures of what is erased, where the list is short.
EACH, ERASED = 2, 20


def rows_of(small: Small) -> Iterator[dict]:
    """A row for each list and lambda1."""
    order = mass_order(small.words)
    kept = [name for name in small.words["concepts"] if name not in order][::EACH]
    preset = small.host.module("mace.presets.presets").PRESETS[LONG_LISTS]
    for multiple, count in itertools.product(MULTIPLES, COUNTS):
        # Of one thing, one that has neighbours in the vocabulary.
        erased = order[:count] if count > 1 else ["dog"]
        weights = preset.own_weights(small.chosen(erased))
        lambda1 = weights.lambda1 * multiple
        model = small.refined(erased, (repr(lambda1), repr(weights.mu), weights.metric), "on", pooled=True)
        about = {"concepts": count, "times the preset's": multiple, "lambda1": lambda1}
        yield about | small.shares(model, questions_of(erased, kept, pictures=ERASED))


def main() -> None:
    """The command."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    rows = Rows(RESULTS / "lists_elsewhere.json")
    with tempfile.TemporaryDirectory() as folder:
        small = Small(Path(folder), MODEL, SDXL, prior=False)
        names = small.words["concepts"]
        small.make_prior([*captions(names), *sentences(names)])
        for row in rows_of(small):
            rows.add(row)
    rows.end()


if __name__ == "__main__":
    main()
