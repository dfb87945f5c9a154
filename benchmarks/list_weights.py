"""How large a lambda1 lists take: a thing, five, ten, ten with the aliases that the model tells, fifty, a hundred.

    python dev.py run python -m benchmarks.list_weights

Closed form alone, own words too, mu 1 in embeddings, and the prior with sentences, which steps aside for each list.
Judged as benchmarks.mass does, by all things that stay, each in two captions, and ten by the synonyms of the ten
classes too, none of which is named. The aliases are those of one picture of each thing. The last line is one JSON
object with a row for each refinement; each row is written to benchmarks/results as it is found.
"""

from collections.abc import Iterator

from benchmarks.erasure.bench import Work
from benchmarks.erasure.questions import asked
from benchmarks.kept_near import ask_model
from benchmarks.mass import SEED, TEMPLATES, Mass, record

ONE = "dog"
ALIASED = "ten things with their aliases"
LAMBDA1 = {
    "a hundred things": (5e-3, 1e-2, 2e-2, 3e-2),
    "fifty things": (1e-2, 2e-2, 3e-2),
    ONE: (1e-3, 5e-3, 1e-2, 2e-2),
    "five things": (1e-3, 5e-3, 1e-2, 2e-2),
    "ten things": (1e-3, 5e-3, 1e-2, 2e-2),
    ALIASED: (1e-3, 5e-3, 1e-2, 2e-2),
}
COUNTS = {"five things": 5, "ten things": 10, ALIASED: 10, "fifty things": 50, "a hundred things": 100}
# Pictures of what is erased, where the list is short.
ERASED = 40


def rows_of(mass: Mass) -> Iterator[dict]:
    """A row for each list and lambda1."""
    bench = mass.bench
    for name, weights in LAMBDA1.items():
        erased = mass.order[: COUNTS[name]] if name in COUNTS else [name]
        concepts = ask_model(mass, erased)[0] if name == ALIASED else bench.concepts(erased)
        questions = mass.questions(erased)
        questions["erased"] = asked(erased, TEMPLATES[:1], seeds=max(1, ERASED // len(erased)), seed=SEED)
        if len(erased) == 10:
            questions["synonyms"] = mass.synonyms()
        for lambda1 in weights:
            work = Work(concepts, seconds={})
            bench.refine(work, own_words=mass.own_words, lambda1=repr(lambda1))
            found = bench.examiner.shares(bench.model, work.refined, questions)
            yield {"erased list": name, "lambda1": lambda1, **found}


def main() -> None:
    """The command."""
    record("list_weights", rows_of, own_words=True, each=1, forms=2)


if __name__ == "__main__":
    main()
