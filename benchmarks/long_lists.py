"""Lists of a hundred to two thousand concepts at the size of SD1.5: seconds and memory of the solves.

    python dev.py run python -m benchmarks.long_lists [--counts 250 500 1000 2072]

Moments of synthetic embeddings, as CFR Refine keeps those of a list that memory does not hold: sums in memory, each
concept's own on the disk; a random LoRA of rank 1 on each of the 32 projections for every concept. Timed are the solve
of Eq. 19 and Eq. 7 with all products of the projections, and the same with other strengths of single concepts. Each
list has a process of its own; memory is that process's high-water mark, torch and the LoRAs with it. The longest list
published is of 2,072 concepts. The last line is one JSON object.
"""

import argparse
import json
import subprocess
import sys

import torch

from benchmarks.fusion import FUSE, KEYS, REFINE, make_lora
from benchmarks.measure import load, log, resident, timed
from benchmarks.synthetic import CPU, ROWS, WIDTH, make_concept, make_model
from mace.method.fuse import fuse
from mace.method.moments import concept_moments
from mace.method.sums import gather_moments

COUNTS = (250, 500, 1000, 2072)
# Of a concept; its moments are as large for one as for thirty.
PROMPTS = 1


def solve(weights, moments, loras, prior, strengths=None) -> float:
    """Refine, fuse, and change every projection, one at a time. Returns a sum over all, so that all is computed."""
    fusion = fuse(moments, loras, REFINE, FUSE, prior=prior, strengths=strengths)
    return sum(float(fusion.delta(key, weight).abs().sum()) for key, weight in zip(KEYS, weights, strict=True))


def measure(count: int, most_bytes: int = 0) -> dict:
    """A row for a list of `count` concepts. most_bytes: of moments that stay in memory."""
    weights, prior = make_model()
    loras = [make_lora(i) for i in range(count)]
    made, moments = timed(
        gather_moments, (concept_moments(make_concept(i, PROMPTS), WIDTH, CPU) for i in range(count)), most_bytes
    )
    first, _ = timed(solve, weights, moments, loras, prior)
    again, _ = timed(solve, weights, moments, loras, prior, [0.5 + 0.5 * (i % 2) for i in range(count)])
    # Of this process alone: what getrusage says begins with the memory of the process that started it.
    peak = resident("VmHWM")
    return {"concepts": count, "sums_s": made, "solve_s": first, "other_strengths_s": again, "peak_bytes": peak}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS)
    parser.add_argument("--one", type=int, help="this list alone, in this process")
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(measure(options.one)))
        return
    busy, rows = load(), []
    for count in options.counts:
        command = [sys.executable, "-m", "benchmarks.long_lists", "--one", str(count)]
        rows.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout))
        log(str(rows[-1]))
    each = [row["solve_s"] / row["concepts"] for row in rows]
    print(
        json.dumps(
            {
                "threads": torch.get_num_threads(),
                "load": busy,
                "projections": len(ROWS),
                "rows": [{k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()} for row in rows],
                "seconds_a_concept_last_to_first": round(each[-1] / each[0], 2),
            }
        )
    )


if __name__ == "__main__":
    main()
