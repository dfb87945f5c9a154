"""How large a lambda1 short lists take: a thing, ten things, and ten with the aliases that the model tells.

    python dev.py run python -m benchmarks.short_lists

Closed form alone, own words too, mu 1 in embeddings, and the prior with sentences, which steps aside for each list.
Judged as benchmarks.mass does, by every second thing that stays, and ten by the synonyms of the ten classes too, none
of which is named. The aliases are those of one picture of each thing. The last line is one JSON object with a row for
each refinement; each row is written to benchmarks/results as it is found.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.erasure.bench import Work
from benchmarks.erasure.questions import asked
from benchmarks.kept_near import ask_model
from benchmarks.mass import RESULTS, SEED, TEMPLATES, Mass
from benchmarks.measure import Rows

ONE = "dog"
LAMBDA1 = {"ten things with their aliases": (1e-3, 1e-2, 3e-2, 1e-1), "ten things": (1e-3, 1e-2, 3e-2)}
LAMBDA1[ONE] = (1e-4, 1e-3, 1e-2)


def rows_of(mass: Mass) -> Iterator[dict]:
    """A row for each list and lambda1."""
    bench = mass.bench
    ten = mass.order[:10]
    aliased, _ = ask_model(mass, ten)
    named = {word: name for name in ten for word in bench.words["synonyms"][name]}
    synonyms = {"synonyms": asked(named, TEMPLATES[:1], seed=SEED)}
    plain = (bench.concepts(ten), {**mass.questions(ten), **synonyms})
    lists = {"ten things with their aliases": (aliased, plain[1]), "ten things": plain}
    lists[ONE] = (bench.concepts([ONE]), mass.questions([ONE]))
    for name, weights in LAMBDA1.items():
        concepts, questions = lists[name]
        for lambda1 in weights:
            work = Work(concepts, seconds={})
            bench.refine(work, own_words=mass.own_words, lambda1=repr(lambda1))
            yield {
                "erased list": name,
                "lambda1": lambda1,
                **bench.examiner.shares(bench.model, work.refined, questions),
            }


def main() -> None:
    """The command."""
    rows = Rows(RESULTS / "short_lists.json")
    with tempfile.TemporaryDirectory() as folder:
        mass = Mass(Path(folder), own_words=True, each=2)
        with mass.bench.any_length(wider=True):
            for row in rows_of(mass):
                rows.add(row)
    rows.end()


if __name__ == "__main__":
    main()
