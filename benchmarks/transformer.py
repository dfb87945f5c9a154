"""Erasing from the small SD3 in closed form alone: its text ports, with and without own words and pooled text.

    python dev.py run python -m benchmarks.transformer [--search | --paper]

Judged as the demo model is in docs/results.md, with its questions; only what the model draws right before counts. The
prior's captions are a third of the demo model's, over its vocabulary. --search: other weights, asked with another seed.
--paper: Table 10's mu alone, without a prior. The last line is one JSON object with a row for each erasure; each row is
written to benchmarks/results as it is found.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.demo_model.checkpoint import write
from benchmarks.erasure.bench import MAPPINGS, STYLE
from benchmarks.erasure.questions import SEED, TEMPLATES, Examiner, Question, asked
from benchmarks.erasure.tasks import TEN
from benchmarks.pictures import Studio, vocabulary
from devtools.cache import REPO
from devtools.demo_prior import captions
from devtools.inprocess import open_host
from mace.method.refine import ALIKE, READING

MODEL = REPO / "assets/demo/demo_sd3.safetensors"
RESULTS = REPO / "benchmarks/results"
STEPS, CHANNELS = 10, 16
ALONE = ("dog", "ship", "bird", "horse", "automobile")
CAPTIONS = "vocabulary.txt"
# Of the demo model's captions one in so many is read, of the other things one in so many asked for.
EVERY_CAPTION, EVERY = 3, 6
# (lambda1, mu, what mu measures in): the search's, and the one that it found.
GRID = (
    ("0", "10", ALIKE), ("1e-4", "1", ALIKE), ("1e-3", "10", ALIKE),
    ("1e-4", "1e3", READING), ("1e-4", "1e4", READING), ("1e-3", "1e5", READING),
)  # fmt: skip
FOUND = ("1e-4", "1e4", READING)
PAPER = ("0", "10", ALIKE)
# (own words, pooled text) of CFR Refine.
WAYS = (("off", False), ("off", True), ("on", False), ("on", True))


class Small:
    """The small SD3 in the host, and what is asked of it. prior: whether one is made."""

    def __init__(self, folder: Path, compact: Path, prior: bool):
        self.host = open_host(folder)
        checkpoint = folder / "sd3.safetensors"
        write(compact, checkpoint)
        self.model, self.clip, self.vae = self.host.load_checkpoint(checkpoint)
        studio = Studio(self.host, self.clip, self.vae, STEPS, "euler", pooled=True, channels=CHANNELS)
        self.examiner, self.words = Examiner(studio, STYLE), vocabulary()
        self.prior = self._made_prior(folder) if prior else None
        self.measures = self.host.module("nodes.stages.refine").MEASURE_NAMES

    def _made_prior(self, folder: Path):
        (folder / "input" / CAPTIONS).write_text("\n".join(captions()[::EVERY_CAPTION]), encoding="utf-8")
        build = self.host.module("nodes.stages.prior").build_prior
        return build(self.clip, CAPTIONS, 1_000_000, 0, model=self.model)[0]

    def questions(self, erased: Sequence[str], seed: int) -> dict[str, list[Question]]:
        """By group: the erased names, their synonyms, the other CIFAR classes, and other things."""
        synonyms = {word: name for name in erased for word in self.words["synonyms"].get(name, ())}
        classes = [name for name in self.words["synonyms"] if name not in erased]
        rest = [name for name in self.words["concepts"] if name not in self.words["synonyms"]]
        others = [asked([name], (TEMPLATES[i % 2],), seed=seed) for i, name in enumerate(rest)]
        return {
            "erased": asked(erased, seeds=max(1, 4 // len(erased)), seed=seed),
            "synonyms": asked(synonyms, seed=seed),
            "classes": asked(classes, seed=seed),
            "others": sum(others[::EVERY], []),
        }

    def refined(self, erased: Sequence[str], weights: tuple[str, str, str], own_words: str, pooled: bool):
        """The MODEL without some concepts, by CFR Refine."""
        lines = "\n".join(f"{name} -> {MAPPINGS.get(name, 'sky')}" for name in erased)
        chosen = self.host.run("MACE_Concepts", concepts=lines, type="object", preset="none", prompt_file="none")[0]
        lambda1, mu, metric = weights
        return self.host.run(
            "MACE_CFRRefine", model=self.model, clip=self.clip, concepts=chosen, prior=self.prior, strength=1.0,
            lambda1=lambda1, lambda3="0", mu=mu, projections="both", lambda1_form="paper",
            mu_measures=self.measures[metric], own_words=own_words, pooled_text=pooled,
        )[0]  # fmt: skip

    def shares(self, model, groups: dict[str, list[Question]]) -> dict[str, float]:
        """By group, how much of what the model draws right before is still drawn."""
        found = {}
        for name, group in groups.items():
            base = self.examiner.ask(self.model, group, "base").right
            found[name] = round(float((base * self.examiner.ask(model, group).right).sum() / base.sum()), 3)
        return found

    def drawn_before(self) -> float:
        """The share of all its things that the model draws, as the judge names them."""
        everything = asked(self.words["concepts"], TEMPLATES[:1])
        return round(float(self.examiner.ask(self.model, everything, "base").right.mean()), 3)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=MODEL, help="the compact file of the small SD3")
    parser.add_argument("--search", action="store_true", help="other weights, on two lists")
    parser.add_argument("--paper", action="store_true", help="Table 10's weights for an object, without a prior")
    options = parser.parse_args()
    rows: list[dict] = []
    with tempfile.TemporaryDirectory() as folder:
        small = Small(Path(folder), options.model.resolve(), not options.paper)
        kind = "_search" if options.search else "_paper" if options.paper else ""
        out = RESULTS / f"transformer{kind}.json"
        lists = {name: (name,) for name in (ALONE[:1] if options.search else ALONE)} | {"ten": TEN}
        if not kind:
            rows.append({"model": "before", "drawn": small.drawn_before()})
        for name, erased in lists.items():
            groups = small.questions(erased, 500 if options.search else SEED)
            for weights in GRID if options.search else (PAPER if options.paper else FOUND,):
                for own_words, pooled in WAYS[3:] if options.search else WAYS:
                    model = small.refined(erased, weights, own_words, pooled)
                    about = dict(zip(("lambda1", "mu", "mu measures"), weights, strict=True))
                    about |= {"concepts": name, "own words": own_words, "pooled text": pooled}
                    rows.append(about | small.shares(model, groups))
                    print(rows[-1], flush=True)
                    out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
