"""The search for the demo model's preset: ten concepts in one run, one training after the other, several fusions each.

    python dev.py run python -m benchmarks.search

Judged with another prompt and another seed than the results in docs/results.md. The last line is one
JSON object with a row for each combination.
"""

import json
import tempfile
from pathlib import Path

from benchmarks.erasure import AUTO_TRAIN, PICTURES, PRESET, TEN, Bench
from devtools.inprocess import REPO

RESULTS = REPO / "benchmarks" / "results" / "search.json"
TEMPLATES, SEED, STEPS = ("an image of a {}",), 500, 8
REFINE = dict(lambda1="1e-4", lambda3="0", mu="1", strength=1.0, projections="both", lambda1_form="paper")
# (rank, learning rate, end of text, focus) of a training, and the lambda2 of its fusions.
GRID = (
    (("1", "3e-3", "yes", "no"), ("1e-3", "1e-2")),
    (("1", "1e-2", "yes", "no"), ("1e-3", "1e-2")),
    (("4", "1e-2", "yes", "no"), ("1e-2", "3e-2")),
    (("4", "1e-2", "no", "no"), ("1e-2", "3e-2")),
    (("1", "1e-2", "yes", "yes"), ("1e-3", "3e-3", "1e-2")),
    (("1", "1.5e-2", "yes", "yes"), ("3e-3", "6e-3")),
    (("1", "1.5e-2", "no", "yes"), ("3e-3",)),
    (("1", "2e-2", "yes", "yes"), ("3e-3", "1e-2")),
    (("4", "3e-2", "yes", "yes"), ("3e-3", "1e-2")),
)


def main() -> None:
    """The command."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), TEMPLATES, SEED, STEPS)
        run, common = bench.host.run, dict(clip=bench.clip)
        chosen = bench.concepts(TEN, "Twemoji -> art")
        node = run("MACE_CFRRefine", model=bench.model, concepts=chosen, prior=bench.prior, **REFINE, **common)
        refined, refinement = node.result
        rows.append({"stage": "refined", **bench.measure(refined, TEN)})
        print(rows[-1], flush=True)
        show = dict(model=bench.model, vae=bench.vae, concepts=chosen, prompt="auto", negative="", **PICTURES)
        images = run("MACE_ConceptImages", **show, **common)[0]
        masks = run("MACE_MaskConcept", model=bench.model, images=images, backend="attention", **common)[0]
        for (rank, rate, end, focus), lambdas in GRID:
            settings = dict(rank=rank, learning_rate=rate, end_of_text=end, focus=focus, preset=PRESET)
            training = dict(model=refined, images=images, masks=masks, **{**AUTO_TRAIN, **settings})
            loras = run("MACE_TrainErasureLora", **training, **common)[0]
            for lambda2 in lambdas:
                fusing = dict(loras=loras, refinement=refinement, strengths="", lambda2=lambda2, lambda3="0", mu="1")
                fusing |= dict(method="closed form (Eq. 7)", pull="refined weights (release)")
                fused = run("MACE_FuseLoras", model=bench.model, **fusing)[0]
                about = {"rank": rank, "rate": rate, "end of text": end, "focus": focus, "lambda2": lambda2}
                rows.append({**about, **bench.measure(fused, TEN)})
                print(rows[-1], flush=True)
                RESULTS.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
