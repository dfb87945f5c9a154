"""The main rows of the search for the demo model's preset: ten concepts in one run, by refinement, training and fusion.

    python dev.py run python -m benchmarks.search

Judged with other prompts and another seed than the results in docs/results.md; the prior's captions hold none of these
prompts. The last line is one JSON object with a row for each combination.
"""

import json
import tempfile
from pathlib import Path

from benchmarks.erasure import AUTO_TRAIN, PICTURES, PRESET, TEN, Bench
from devtools.inprocess import REPO
from mace.refine import ALIKE, READING

RESULTS = REPO / "benchmarks" / "results" / "search.json"
TEMPLATES = (
    "a drawing of the {}",
    "a picture of a {}",
    "an icon of the {}",
    "an image of the {}",
    "illustration of a {}",
    "a {} in a photo",
)
SEED, STEPS = 500, 8
# (lambda1, mu, what mu measures) of a refinement; its trainings: (rate, (lambda2, mu) of each fusion).
GRID = (
    (("1e-4", "1", ALIKE), (("1.5e-2", (("6e-3", "1"),)),)),
    (("1e-3", "1000", READING), (("1.5e-2", (("3e-3", "1000"),)),)),
    (("1e-4", "1e4", READING), ()),
    (("1e-4", "2e5", READING), (("5e-3", (("2e-4", "1000"),)),)),
    (("1e-4", "1e5", READING), (("3e-3", (("3e-4", "1e4"),)), ("5e-3", (("1e-3", "1e4"), ("1e-3", "3e4"))))),
)


def main() -> None:
    """The command."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), TEMPLATES, SEED, STEPS)
        run, common = bench.host.run, dict(clip=bench.clip)
        chosen = bench.concepts(TEN, "Twemoji -> art")
        show = dict(model=bench.model, vae=bench.vae, concepts=chosen, prompt="auto", negative="", **PICTURES)
        images = run("MACE_ConceptImages", **show, **common)[0]
        masks = run("MACE_MaskConcept", model=bench.model, images=images, backend="attention", **common)[0]

        def note(model, **about):
            rows.append({**about, **bench.measure(model, TEN, style="Twemoji")})
            print(rows[-1], flush=True)
            RESULTS.write_text(json.dumps(rows, indent=1), encoding="utf-8")

        names = bench.host.module("nodes.refine").MEASURE_NAMES
        for (lambda1, mu, metric), trainings in GRID:
            measures = names[metric]
            refining = dict(lambda1=lambda1, lambda3="0", mu=mu, mu_measures=measures, strength=1.0)
            refining |= dict(projections="both", lambda1_form="paper", concepts=chosen, prior=bench.prior)
            refined, refinement = run("MACE_CFRRefine", model=bench.model, **refining, **common).result
            about = {"lambda1": lambda1, "mu": mu, "mu measures": measures}
            note(refined, **about, stage="refined")
            for rate, fusions in trainings:
                settings = dict(learning_rate=rate, end_of_text="yes", focus="yes", preset=PRESET)
                training = dict(model=refined, images=images, masks=masks, **{**AUTO_TRAIN, **settings})
                loras = run("MACE_TrainErasureLora", **training, **common)[0]
                for lambda2, pull in fusions:
                    fusing = dict(loras=loras, refinement=refinement, strengths="", lambda2=lambda2, lambda3="0")
                    fusing |= dict(mu=pull, method="closed form (Eq. 7)", pull="refined weights (release)")
                    fused = run("MACE_FuseLoras", model=bench.model, **fusing)[0]
                    note(fused, **about, stage="fused", rate=rate, lambda2=lambda2, **{"fusion's mu": pull})
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
