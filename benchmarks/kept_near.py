"""What keeping the words next to a list does: with and without them, at 1, 10 and 100 things, in closed form.

    python dev.py run python -m benchmarks.kept_near [--count N ...] [--aliases]

The demo model, the weights for lists of any length, own words too, and the prior with sentences, which steps aside for
each list. The near words are those that Find Aliases tells to be no aliases, by one picture of each thing, and names of
other things that hold an erased word, as with `keep_near` of Erase Concepts; they are preserved in all their templates
by lambda3. Judged as benchmarks.mass does, by all that stays; the things among it that are near words alone too, and
ten by the synonyms of the ten classes, none of which is named. The last line is one JSON object with a row for each
refinement; each row is written to benchmarks/results as it is found.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

from benchmarks.erasure.bench import PICTURES, Work
from benchmarks.erasure.questions import asked
from benchmarks.mass import SEED, TEMPLATES, Mass, record

COUNTS, WEIGHTS = (1, 10, 100), (0.0, 0.1, 0.3, 1.0)
# Pictures of ten things erased.
ERASED = 40


def ask_model(mass: Mass, erased: Sequence[str]):
    """(some things with the aliases that the model tells, the words next to them that it does not take for them)."""
    bench, run = mass.bench, mass.bench.host.run
    show = dict(model=bench.model, vae=bench.vae, clip=bench.clip, prompt="auto", negative="")
    images = run("MACE_ConceptImages", concepts=bench.concepts(erased), **show, **{**PICTURES, "count": 1})[0]
    usual = vars(replace(bench.host.module("nodes.stages.alias_words").AliasSettings(), pictures=1))
    found = run(
        "MACE_FindAliases", model=bench.model, clip=bench.clip, images=images, prior=bench.prior, **usual
    ).result
    return found[0], [word for word in found[3].split("\n") if word]


def rows_of(mass: Mass, counts: Sequence[int], aliases: bool) -> Iterator[dict]:
    """A row for each list and lambda3. aliases: whether the things are erased with their aliases."""
    bench = mass.bench
    for count in counts:
        # Of one thing, one that has neighbours in the vocabulary.
        erased = mass.order[:count] if count > 1 else ["dog"]
        aliased, near = ask_model(mass, erased)
        questions = mass.questions(erased)
        questions["near"] = asked([name for name in mass.kept if name in near], TEMPLATES[1:], seed=SEED)
        if count == len(bench.words["synonyms"]):
            questions["synonyms"] = mass.synonyms()
            questions["erased"] = asked(erased, TEMPLATES[:1], seeds=ERASED // count, seed=SEED)
        for weight in WEIGHTS:
            prior = bench.keeping(near) if weight else bench.prior
            work = Work(aliased if aliases else bench.concepts(erased), seconds={})
            bench.refine(work, own_words=mass.own_words, lambda3=repr(weight), prior=prior)
            about = {"concepts": count, "aliases": aliases, "near words": len(near), "lambda3": weight}
            yield about | bench.examiner.shares(bench.model, work.refined, questions)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, action="append", help="things erased; 1, 10 and 100 if not given")
    parser.add_argument("--aliases", action="store_true", help="erase their aliases too, as the model tells them")
    options = parser.parse_args()
    given = dict(counts=options.count or COUNTS, aliases=options.aliases)
    # All that stays: few of them are near words.
    record(f"kept_near{'_aliases' * options.aliases}", partial(rows_of, **given), own_words=True, each=1)


if __name__ == "__main__":
    main()
