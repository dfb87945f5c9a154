"""Lists of a hundred to two thousand concepts at the size of SD1.5: seconds and memory of the solves.

    python dev.py run python -m benchmarks.long_lists [--counts 250 500 1000 2072]

Moments of synthetic embeddings, as CFR Refine keeps those of a list that memory does not hold: sums in memory, each
concept's own on the disk; a random LoRA of rank 1 on each of the 32 projections for every concept. Timed are the solve
of Eq. 19 and Eq. 7 with all products of the projections, and the same with other strengths of single concepts. Each
list has a process of its own; memory is that process's high-water mark, torch and the LoRAs with it. The longest list
published is of 2,072 concepts. --saved: the same from the file of a saved set with its moments, where sums_s is what
loading it takes; another process writes it, with 9.7 MB of memory a concept. The last line is one JSON object.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.fusion import FUSE, KEYS, REFINE, make_lora
from benchmarks.measure import load, log, resident, timed
from benchmarks.synthetic import CPU, ROWS, WIDTH, make_concept, make_model
from mace.concepts.concept import Concept
from mace.formats.file_tensors import FileTensors
from mace.formats.lora_set import ErasureLora, LoraSet
from mace.formats.lora_set_file import set_from_file, set_to_file
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


def moments_of(place: int):
    """The moments of one concept of a list."""
    return concept_moments(make_concept(place, PROMPTS), WIDTH, CPU)


def write(count: int, path: Path) -> None:
    """The file of a set of `count` concepts with their moments."""
    loras = (
        ErasureLora(Concept(f"thing {i}", "sky", "object"), make_lora(i), torch.zeros(0), {}, moments_of(i))
        for i in range(count)
    )
    tensors, metadata = set_to_file(LoraSet(tuple(loras), None, (2, 2, 2, 2)), True)
    save_file(tensors, path, metadata)


def load_set(path: Path) -> tuple[list, list]:
    """(LoRAs, moments) of such a file, as Load Erasure LoRAs reads it."""
    tensors = FileTensors(str(path), path.name)
    found = set_from_file(tensors, tensors.metadata, later=True)
    return [own.lora for own in found.loras], [own.moments for own in found.loras]


def measure(count: int, saved: Path | None = None, most_bytes: int = 0) -> dict:
    """A row for a list of `count` concepts. saved: the file of their set.  most_bytes: of moments that stay in
    memory."""
    weights, prior = make_model()
    if saved is None:
        loras = [make_lora(i) for i in range(count)]
        made, moments = timed(gather_moments, map(moments_of, range(count)), most_bytes)
    else:
        made, (loras, moments) = timed(load_set, saved)
    first, _ = timed(solve, weights, moments, loras, prior)
    again, _ = timed(solve, weights, moments, loras, prior, [0.5 + 0.5 * (i % 2) for i in range(count)])
    # Of this process alone: what getrusage says begins with the memory of the process that started it.
    peak = resident("VmHWM")
    row = {"concepts": count, "sums_s": made, "solve_s": first, "other_strengths_s": again, "peak_bytes": peak}
    return row if saved is None else {**row, "saved_bytes": saved.stat().st_size}


def in_own_process(*arguments) -> str:
    """What this program prints with other arguments."""
    command = [sys.executable, "-m", "benchmarks.long_lists", *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", type=int, nargs="*", default=COUNTS)
    parser.add_argument("--saved", type=int, nargs="*", default=(), help="lists that are saved sets")
    parser.add_argument("--one", type=int, help="this list alone, in this process")
    parser.add_argument("--write", type=int, help="write the file of this list's set, and no more")
    parser.add_argument("--file", type=Path, help="of the saved set")
    options = parser.parse_args()
    if options.write is not None:
        write(options.write, options.file)
        return
    if options.one is not None:
        print(json.dumps(measure(options.one, options.file)))
        return
    busy, rows = load(), []
    for count in options.counts:
        rows.append(json.loads(in_own_process("--one", count)))
        log(str(rows[-1]))
    each = [row["solve_s"] / row["concepts"] for row in rows]
    for count in options.saved:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "set.safetensors")
            in_own_process("--write", count, "--file", path)
            rows.append(json.loads(in_own_process("--one", count, "--file", path)))
        log(str(rows[-1]))
    print(
        json.dumps(
            {
                "threads": torch.get_num_threads(),
                "load": busy,
                "projections": len(ROWS),
                "rows": [{k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()} for row in rows],
                "seconds_a_concept_last_to_first": round(each[-1] / each[0], 2) if each else None,
            }
        )
    )


if __name__ == "__main__":
    main()
