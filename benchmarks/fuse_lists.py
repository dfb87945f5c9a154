"""Where the fusion of a list is held: Eq. 7's lambda2, and the same with what is kept as the refined weights read it.

    python dev.py run python -m benchmarks.fuse_lists

The demo model, the weights for lists of any length, the prior with sentences, LoRAs as by the demo model's preset, mu
1. Judged as benchmarks.mass does, by every second of the things that stay, and ten by the synonyms of the ten classes
too, none of which is named. The last line is one JSON object with a row for each fusion; each row is written to
benchmarks/results as it is found.
"""

from collections.abc import Iterator
from dataclasses import replace

from benchmarks.erasure.questions import asked
from benchmarks.mass import SEED, TEMPLATES, Mass, record
from mace.method.fuse import ALL_TO_REFINED, TO_REFINED, FuseWeights

# lambda2 by length of the list and by where the weights of Eq. 7 hold.
GRID = {
    100: {TO_REFINED: (0.01, 0.1, 1.0), ALL_TO_REFINED: (0.01, 0.1, 1.0, 10.0)},
    10: {TO_REFINED: (0.001, 1.0), ALL_TO_REFINED: (0.001, 0.01, 0.1, 1.0)},
}
# Pictures of what is erased, where the list is short.
ERASED = 40


def rows_of(mass: Mass) -> Iterator[dict]:
    """A row for each list by the refinement alone, then for each fusion."""
    bench = mass.bench
    for count, grid in GRID.items():
        erased = mass.order[:count]
        questions = mass.questions(erased)
        questions["erased"] = asked(erased, TEMPLATES[:1], seeds=max(1, ERASED // count), seed=SEED)
        if count == len(bench.words["synonyms"]):
            questions["synonyms"] = mass.synonyms()
        work = bench.prepare(erased)
        yield {"concepts": count} | bench.examiner.shares(bench.model, work.refined, questions)
        bench.train(work)
        for pull, values in grid.items():
            for lambda2 in values:
                weights = FuseWeights(lambda2=lambda2, mu=1.0, pull=pull)
                bench.preset = replace(bench.preset, fuse=lambda count, weights=weights: weights)
                found = bench.examiner.shares(bench.model, bench.fuse(work), questions)
                yield {"concepts": count, "pull": pull, "lambda2": lambda2, **found}


def main() -> None:
    """The command."""
    record("fuse_lists", rows_of, each=2)


if __name__ == "__main__":
    main()
