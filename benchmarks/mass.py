"""Weights of the refinement that serve lists of every length: 1, 10 and 100 things, in closed form alone.

    python dev.py run python -m benchmarks.mass [--grid NAME]

The demo model, its prior of captions over its vocabulary with the ten classes' captions among them, which steps aside
for each list; nothing is trained. Judged with other prompts and another seed than docs/results.md: the erased names,
every third of the things that stay, by a template and in captions of other forms. Only what the model draws right
before counts. The last line is one JSON object with a row for each refinement; each row is written to
benchmarks/results as it is found.
"""

import argparse
import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks.erasure.bench import Bench
from benchmarks.erasure.questions import Question, asked
from benchmarks.erasure.tasks import mass_order
from benchmarks.measure import Rows
from devtools.cache import REPO
from devtools.inprocess import open_host
from mace.method.refine import ALIKE, READING

RESULTS = REPO / "benchmarks/results"
SEED, STEPS = 500, 6
TEMPLATES = ("an image of the {}", "illustration of a {}")
# As the captions of docs/results.md: with words around the name that have no embedding, and at other places.
FORMS = (
    "{} at night",
    "one small {}, close up",
    "I drew a {} yesterday",
    "a green {} on a table",
    "see the {} over there",
)
COUNTS = (100, 10, 1)
# What the concepts of a list have in common is in each of their sums, so that lambda1 has to grow with the list; what
# is a concept's own is in one of them, and mu has not. lambda1 for one concept, mu for any list.
GRIDS = {
    "alike": [(1e-4, 1, ALIKE), (3e-5, 1, ALIKE), (3e-4, 1, ALIKE), (1e-4, 0.1, ALIKE), (1e-4, 10, ALIKE)],
    "reading": [(1e-4, 1e2, READING), (1e-4, 1e3, READING), (1e-4, 1e4, READING)],
    "own": [(1e-4, 1, ALIKE)],
}
# Where no LoRA follows, what the concepts' own words carry can go by the closed form too.
OWN_WORDS = ("own",)


def questions_of(
    erased: Sequence[str], kept: Sequence[str], forms: int = 1, pictures: int = 6
) -> dict[str, list[Question]]:
    """By group: what is erased, what stays, and the same in captions of other forms.

    forms: captions of each.  pictures: of what is erased, where the list is short.
    """
    own = [(FORMS[(i + 2 * k) % len(FORMS)], name) for k in range(forms) for i, name in enumerate(kept)]
    return {
        "erased": asked(erased, TEMPLATES[:1], seeds=max(1, pictures // len(erased)), seed=SEED),
        "others": asked(kept, TEMPLATES[1:], seed=SEED),
        "captions": [Question(form.format(name), name, SEED) for form, name in own],
    }


class Mass:
    """The demo model, its whole prior, and what is asked."""

    def __init__(self, folder: Path, own_words: bool = False, each: int = 3, forms: int = 1):
        """own_words: whether the refinement moves the concepts' own words too.  each: of what stays, how many-th is
        asked for.  forms: in how many captions each."""
        self.own_words, self.forms = "on" if own_words else "auto", forms
        self.bench = bench = Bench(open_host(folder), STEPS)
        self.measures = bench.host.module("mace.pipeline.refine").MEASURE_NAMES
        self.order = mass_order(bench.words)
        self.kept = [name for name in bench.words["concepts"] if name not in self.order][::each]

    def questions(self, erased: Sequence[str]) -> dict[str, list[Question]]:
        """See `questions_of`."""
        return questions_of(erased, self.kept, self.forms)

    def synonyms(self) -> list[Question]:
        """The ten classes, asked for by their synonyms."""
        named = {word: thing for thing, words in self.bench.words["synonyms"].items() for word in words}
        return asked(named, TEMPLATES[:1], seed=SEED)

    def refined(self, erased: Sequence[str], lambda1: float, mu: float, metric: str):
        """The MODEL without some things, by CFR Refine."""
        weights = dict(lambda1=repr(lambda1), mu=repr(mu), lambda3="0", mu_measures=self.measures[metric])
        weights["own_words"] = self.own_words
        return self.bench.prepare(erased, **weights).refined


def rows_of(mass: Mass, grid: Sequence[tuple[float, float, str]]) -> Iterator[dict]:
    """A row for each list and weights."""
    with mass.bench.any_length():
        for (lambda1, mu, metric), count in itertools.product(grid, COUNTS):
            # One thing alone: two of them, so that it is no matter of one name.
            lists = [mass.order[:count]] if count > 1 else [[name] for name in mass.order[5:9:3]]
            models = [mass.refined(own, lambda1 * count, mu, metric) for own in lists]
            found = [
                mass.bench.examiner.shares(mass.bench.model, model, mass.questions(own))
                for model, own in zip(models, lists, strict=True)
            ]
            about = {"own words": mass.own_words} if mass.own_words != "auto" else {}
            about |= {"concepts": count, "lambda1": lambda1 * count, "mu": mu, "mu measures": metric}
            yield about | {name: round(sum(row[name] for row in found) / len(found), 3) for name in found[0]}


def record(name: str, rows_of: Callable[[Mass], Iterator[dict]], **how) -> None:
    """Write a benchmark's rows to its file in RESULTS, with the prior that has sentences. how: of `Mass`."""
    rows = Rows(RESULTS / f"{name}.json")
    with tempfile.TemporaryDirectory() as folder:
        mass = Mass(Path(folder), **how)
        with mass.bench.any_length(wider=True):
            for row in rows_of(mass):
                rows.add(row)
    rows.end()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--grid", choices=GRIDS, default="alike")
    options = parser.parse_args()
    rows = Rows(RESULTS / f"mass_{options.grid}.json")
    with tempfile.TemporaryDirectory() as folder:
        for row in rows_of(Mass(Path(folder), options.grid in OWN_WORDS), GRIDS[options.grid]):
            rows.add(row)
    rows.end()


if __name__ == "__main__":
    main()
