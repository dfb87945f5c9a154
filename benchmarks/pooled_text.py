"""What an SDXL still draws of an erased concept by its pooled text: on the small trained SDXL.

    python dev.py run python -m benchmarks.pooled_text [--search]

SDXL reads a prompt twice: as 77 embeddings by its cross-attention, and as one pooled vector by label_emb. Each row of
the table is a model (as it is; keys and values edited; keys, values and label_emb edited) drawing with the pooled text
of the prompt, of the same prompt with the mapping in place of the concept, or zeros. Refinement alone, with the
concepts' own words. Judged as benchmarks.transformer is; only what the model draws right before, with its own pooled
text, counts. --search: other weights, asked with another seed. The last line is one JSON object with all rows, each
written to benchmarks/results as it is found.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.erasure.bench import MAPPINGS
from benchmarks.erasure.questions import SEED
from benchmarks.erasure.tasks import TEN
from benchmarks.measure import Rows
from benchmarks.small_model import GRID, SDXL, Small, Weights
from devtools.cache import REPO
from mace.method.refine import READING

MODEL = REPO / "assets/demo/demo_sdxl.safetensors"
RESULTS = REPO / "benchmarks/results"
ALONE = ("dog",)
# What the search found.
FOUND: Weights = ("1e-4", "1e4", READING)
EDITS = {"none": None, "keys and values": False, "keys, values and pooled text": True}


def pooled_ways(small: Small, erased: tuple[str, ...]) -> dict:
    """By name, how a prompt's pooled text is given."""
    replaced = {word: name for name in erased for word in (*small.words["synonyms"].get(name, ()), name)}

    def mapped(prompt: str) -> Tensor:
        """With the mapping in place of the concept, or of the thing a prompt ends with."""
        beginning = next(start for start in ("a photo of the ", "an illustration of the ") if prompt.startswith(start))
        name = replaced.get(prompt.removeprefix(beginning), erased[0])
        return small.studio.pooled_of(beginning + MAPPINGS.get(name, "sky"))

    return {
        "its own": None,
        "the mapping's": mapped,
        "zeros": lambda prompt: torch.zeros_like(small.studio.pooled_of(prompt)),
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=MODEL, help="the compact file of the small SDXL")
    parser.add_argument("--search", action="store_true", help="other weights, on two lists")
    options = parser.parse_args()
    rows = Rows(RESULTS / f"pooled_text{'_search' if options.search else ''}.json")
    with tempfile.TemporaryDirectory() as folder:
        small = Small(Path(folder), options.model.resolve(), SDXL)
        if not options.search:
            rows.add({"model": "before", "drawn": small.drawn_before()})
        for name, erased in (
            {name: (name,) for name in (ALONE[:1] if options.search else ALONE)} | {"ten": TEN}
        ).items():
            if options.search:
                groups = small.questions(erased, 500)
                for weights in GRID:
                    about = dict(zip(("lambda1", "mu", "mu measures"), weights, strict=True)) | {"concepts": name}
                    rows.add(about | small.shares(small.refined(erased, weights, "on", True), groups))
                continue
            groups = small.questions(erased, SEED)
            for edited, pooled in EDITS.items():
                model = small.model if pooled is None else small.refined(erased, FOUND, "on", pooled)
                for given, pool in pooled_ways(small, erased).items():
                    about = {"concepts": name, "edited": edited, "pooled text": given}
                    rows.add(about | small.shares(model, groups, pool=pool))
    rows.end()


if __name__ == "__main__":
    main()
