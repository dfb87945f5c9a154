"""The main rows of the search for the demo model's preset: ten concepts in one run, and CIFAR classes alone.

    python dev.py run python -m benchmarks.search [--baseline FMN]

--baseline searches the learning rate of a method that MACE is compared with, on two classes alone.
Judged with other prompts and another seed than the results in docs/results.md; the prior's captions hold none of these
prompts. The last line is one JSON object with a row for each combination.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.erasure.baselines import BASELINES
from benchmarks.erasure.bench import STYLE, Bench, Work
from benchmarks.erasure.questions import Question, asked
from benchmarks.erasure.tasks import TEN
from devtools.inprocess import REPO, open_host
from mace.method.refine import ALIKE, READING

RESULTS = REPO / "benchmarks" / "results"
TEMPLATES = (
    "a drawing of the {}",
    "a picture of a {}",
    "an icon of the {}",
    "an image of the {}",
    "illustration of a {}",
    "a {} in a photo",
)
SEED, EVERY = 500, 4
# (lambda1, mu, what mu measures) of a refinement; its trainings: (rate, (lambda2, mu) of each fusion).
GRID = (
    (("1e-4", "1", ALIKE), (("1.5e-2", (("6e-3", "1"),)),)),
    (("1e-3", "1000", READING), (("1.5e-2", (("3e-3", "1000"),)),)),
    (("1e-4", "1e4", READING), ()),
    (("1e-4", "2e5", READING), (("5e-3", (("2e-4", "1000"),)),)),
    (("1e-4", "1e5", READING), (("3e-3", (("3e-4", "1e4"),)), ("5e-3", (("1e-3", "1e4"), ("1e-3", "3e4"))))),
)
# The same for each of these alone.
ALONE = ("ship", "bird", "horse", "automobile", "deer")
ALONE_GRID = (
    (
        ("1e-4", "1e5", READING),
        (
            ("5e-3", (("1e-4", "3e3"), ("3.2e-4", "1e4"), ("1e-3", "3e4"), ("1e-3", "1e5"))),
            ("3e-3", (("1e-4", "3e3"),)),
        ),
    ),
)

# Of the methods that MACE is compared with.
RATES = {
    "FMN": ("2e-5", "3e-5", "5e-5", "1e-4"),
    "AC": ("3e-5", "1e-4", "3e-4"),
    "ESD-x": ("3e-5", "1e-4", "3e-4"),
    "ESD-u": ("1e-5", "3e-5", "1e-4", "3e-4"),
}


def questions(bench: Bench, erased: Sequence[str]) -> dict[str, list[Question]]:
    """By group. Each word has every other template, each other thing one of them."""
    words = {word: name for name in erased for word in bench.synonyms.get(name, ())}
    own = [asked({word: name}, TEMPLATES[i % 2 :: 2], seed=SEED) for i, (word, name) in enumerate(words.items())]
    others = [name for name in bench.words["concepts"] if name not in erased]
    kept = [asked([name], (TEMPLATES[i % len(TEMPLATES)],), seed=SEED) for i, name in enumerate(others)]
    return {
        "erased": asked(erased, TEMPLATES[::3] if len(erased) > 1 else TEMPLATES, seed=SEED),
        "synonyms": sum(own, []),
        "others": sum(kept[::EVERY], []),
    }


class Search:
    """Runs a grid, and notes what is found in `rows` and on disk."""

    def __init__(self, bench: Bench, file: str):
        self.bench, self.rows, self.path = bench, [], RESULTS / f"{file}.json"
        self.names = bench.host.module("mace.pipeline.refine").MEASURE_NAMES

    def note(self, model, group: dict, **about) -> None:
        """Judge a model. Counts only what the base model draws right."""
        found = {}
        for name, asked_for in group.items():
            base = self.bench.examiner.ask(self.bench.model, asked_for, "base").right
            right = self.bench.examiner.ask(model, asked_for).right
            found[name] = round(float((base * right).sum() / base.sum()), 3)
        if about["concepts"] == "ten":
            others = [thing for thing in self.bench.words["concepts"] if thing not in TEN]
            styled = asked(others[::8], (f"a {STYLE} emoji of a {{}}",), seed=SEED)
            found["style"] = round(float((self.bench.examiner.ask(model, styled).style > 0.5).float().mean()), 3)
        self.rows.append({**about, **found})
        print(self.rows[-1], flush=True)
        self.path.write_text(json.dumps(self.rows, indent=1), encoding="utf-8")

    def baseline(self, method: str) -> None:
        """The rates of a method that trains."""
        for name in ("dog", "ship"):
            work, group = Work(self.bench.concepts([name]), seconds={}), questions(self.bench, [name])
            for rate in RATES[method]:
                model, _ = BASELINES[method](self.bench, work, method, learning_rate=rate)
                self.note(model, group, concepts=name, method=method, rate=rate)

    def run(self, name: str, objects: Sequence[str], style: bool, grid) -> None:
        """One list of concepts through a grid."""
        bench, group = self.bench, questions(self.bench, objects)
        run, common = bench.host.run, dict(model=bench.model)
        work = Work(bench.concepts(objects, style), seconds={})
        bench.draw_training_images(work)
        for (lambda1, mu, metric), trainings in grid:
            refining = dict(lambda1=lambda1, lambda3="0", mu=mu, mu_measures=self.names[metric], strength=1.0)
            refining |= dict(projections="both", lambda1_form="paper", concepts=work.concepts, prior=bench.prior)
            work.refined, work.refinement = run("MACE_CFRRefine", clip=bench.clip, **refining, **common).result
            about = {"concepts": name, "lambda1": lambda1, "mu": mu, "mu measures": metric}
            self.note(work.refined, group, stage="refined", **about)
            for rate, fusions in trainings:
                bench.train(work, learning_rate=rate, end_of_text="yes", focus="yes")
                for lambda2, pull in fusions:
                    fusing = dict(loras=work.loras, refinement=work.refinement, strengths="", lambda2=lambda2)
                    fusing |= dict(lambda3="0", mu=pull, method="closed form (Eq. 7)", pull="refined weights (release)")
                    fused = run("MACE_FuseLoras", **fusing, **common)[0]
                    self.note(fused, group, stage="fused", rate=rate, lambda2=lambda2, **{"fusion's mu": pull}, **about)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--baseline", choices=list(RATES), help="the rates of a baseline in place of MACE's settings")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        search = Search(Bench(open_host(Path(folder))), f"search_{options.baseline}" if options.baseline else "search")
        if options.baseline:
            search.baseline(options.baseline)
        else:
            search.run("ten", TEN, True, GRID)
            for name in ALONE:
                search.run(name, (name,), False, ALONE_GRID)
    print(json.dumps(search.rows))


if __name__ == "__main__":
    main()
