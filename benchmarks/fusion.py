"""Fusion of erasure LoRAs (Eq. 7) at the size of SD1.5: one solve from moments, against the per-concept, per-layer way.

    python dev.py run python -m benchmarks.fusion [--concepts 100] [--prompts 30] [--quick]

The per-layer way is Eq. 7's closed form as the published method computes it, streamed: for each of the 32 projections
and every concept i, W_i* = W' + B_i A_i is formed, and for every prompt sum (W_i* e) e^T and sum e e^T over its 77
tokens are added; then each projection is solved for. Ours sums the second moments of each concept once (with A and G,
which the refinement needs as well; all is counted), and `mace.method.fuse.fuse` solves for all projections at once.

Both sum and solve in float64 and give float32 weights from the same float32 embeddings, weights and LoRAs of rank 1.
The per-layer way is given W' in float64. Ours is timed in two ways: given the refinement's sums A and G as the other is
given what comes of them, with the sums S of all tokens made anew ("fusion alone"); and with all sums made, the
refinement's too. Embeddings, the prior and the LoRAs are made
outside of the timed region. All ratios are of one run, with the two taking turns concept by concept. A second solve
has other strengths: the targets of both sums change then, and the streaming way has to run again. With 100 concepts
this takes ten minutes on two cores; --projections N runs the per-layer way on every (32 / N)-th projection only, and
scales its seconds to 32. The last line is one JSON object.
"""

import argparse
import json
from statistics import median

import torch

from benchmarks.measure import can_measure_memory, in_fresh_process, load, log, peak_extra, timed
from benchmarks.synthetic import CPU, ROWS, WIDTH, WINDOW, make_concept, make_model
from mace.method.fuse import FuseWeights, fuse
from mace.method.moments import Gram, concept_moments
from mace.method.refine import RefineWeights, refinement

REFINE = RefineWeights(lambda1=1e-4, mu=0.1)
FUSE = FuseWeights(lambda2=1e-4, mu=0.1)
SECOND = 0.7  # the strength of every concept in the second solve
KEYS = [f"projection {i}" for i in range(len(ROWS))]
AGREEMENT, AGREEMENT_OF_CHANGE, SECOND_LIMIT, RATIO = 1e-6, 1e-4, 2.0, 50.0


def make_lora(seed):
    """(B [d_out, 1], A [1, d]) of every projection, float32; B A is about 5 % as large as the weight."""
    generator = torch.Generator().manual_seed(1_000_000 + seed)
    return {
        key: (0.002 * torch.randn(rows, 1, generator=generator), torch.randn(1, WIDTH, generator=generator))
        for key, rows in zip(KEYS, ROWS, strict=True)
    }


class PerLayer:
    """The per-layer way on the projections `chosen`. Its float64 weights W and W' are made beforehand: not timed."""

    def __init__(self, weights, transform_delta, chosen):
        self.chosen = chosen
        self.base = [weights[i].double() for i in chosen]
        self.refined = [weight + weight @ transform_delta for weight in self.base]

    def start(self):
        self.left = [torch.zeros_like(weight) for weight in self.base]
        self.right = [torch.zeros(WIDTH, WIDTH, dtype=torch.float64) for _ in self.base]

    def add(self, prompts, lora):
        """One concept: the embeddings of its prompts [P, 77, d], and its LoRA."""
        for i, refined, left, right in zip(self.chosen, self.refined, self.left, self.right, strict=True):
            up, down = lora[KEYS[i]]
            target = refined + up.double() @ down.double()
            for tokens in prompts:
                e = tokens.double()
                left.addmm_((e @ target.T).T, e)
                right.addmm_(e.T, e)

    def solve(self, prior):
        """W* of each projection, float32."""
        fused = []
        for base, refined, left, right in zip(self.base, self.refined, self.left, self.right, strict=True):
            system = right + FUSE.lambda2 * prior
            system.diagonal().add_(FUSE.mu)
            numerator = left + FUSE.lambda2 * (base @ prior) + FUSE.mu * refined
            factor = torch.linalg.cholesky(system)
            fused.append(torch.cholesky_solve(numerator.T, factor).T.float())
        return fused


def total_moment(batches):
    """S of a concept, packed, without the refinement's sums."""
    gram = Gram(WIDTH, CPU)
    for targets, _, _ in batches:
        gram.add(targets)
    return gram.packed


def solve_ours(weights, moments, loras, prior, strengths=None):
    """W* of all projections, float32."""
    fusion = fuse(moments, loras, REFINE, FUSE, prior=prior, strengths=strengths)
    return [weight + fusion.delta(key, weight) for key, weight in zip(KEYS, weights, strict=True)]


def measure(count, prompts, chosen, weights, prior):
    """Seconds of both ways for `count` concepts, and how far their weights are apart."""
    loras = [make_lora(i) for i in range(count)]
    # W' is of all concepts, so a pass over them comes first: neither timed nor kept.
    every = [concept_moments(make_concept(i, prompts), WIDTH, CPU) for i in range(count)]
    per_layer = PerLayer(weights, refinement(every, REFINE, prior), chosen)
    del every
    moments, ours, totals, theirs = [], 0.0, 0.0, timed(per_layer.start)[0]
    for index in range(count):
        batches = make_concept(index, prompts)
        seconds, found = timed(concept_moments, batches, WIDTH, CPU)
        ours += seconds
        moments.append(found)
        seconds, total = timed(total_moment, batches)
        totals += seconds
        assert torch.allclose(total, found.total, rtol=1e-12, atol=1e-6)
        for targets, _, _ in batches:
            theirs += timed(per_layer.add, targets, loras[index])[0]
        if index % 10 == 9:
            log(f"  {index + 1} of {count} concepts: ours {ours:.2f} s, per layer {theirs:.1f} s")
    my_solve, mine = timed(solve_ours, weights, moments, loras, prior)
    their_solve, reference = timed(per_layer.solve, prior)
    again = [timed(solve_ours, weights, moments, loras, prior, [SECOND] * count)[0] for _ in range(3)]
    scale = len(ROWS) / len(chosen)
    row = {"ours_s": ours + my_solve, "ours_sums_s": ours, "ours_solve_s": my_solve, "ours_second_s": median(again)}
    row["ours_alone_s"] = totals + my_solve
    row |= {"per_layer_s": scale * (theirs + their_solve), "per_layer_solve_s": scale * their_solve}
    for name, ours_s in (("ratio", "ours_s"), ("alone_ratio", "ours_alone_s"), ("second_ratio", "ours_second_s")):
        row[name] = row["per_layer_s"] / row[ours_s]
    pairs = [(mine[i], found, weights[i]) for i, found in zip(chosen, reference, strict=True)]
    row["difference"] = max(float((a - b).norm() / b.norm()) for a, b, _ in pairs)
    row["difference_of_change"] = max(float((a - b).norm() / (b - w).norm()) for a, b, w in pairs)
    row["change"] = max(float((b - w).norm() / w.norm()) for _, b, w in pairs)
    assert row["difference"] < AGREEMENT and row["difference_of_change"] < AGREEMENT_OF_CHANGE, row
    return row | {"kept_bytes_a_concept": moments[0].bytes}


def memory_child(method, count, prompts):
    """In a fresh process: prints the peak of one way above what lies in memory before it starts.

    One concept's embeddings stand in for all; they, weights and LoRAs are the baseline. The fused weights are counted.
    """
    weights, prior = make_model()
    batches, loras = make_concept(0, prompts), [make_lora(i) for i in range(count)]
    small = torch.eye(64, dtype=torch.float64)  # loads the libraries' code
    torch.cholesky_solve(small @ small, torch.linalg.cholesky(small)).float() @ small.float()
    if method == "per_layer":
        per_layer = PerLayer(weights, torch.zeros(WIDTH, WIDTH, dtype=torch.float64), range(len(ROWS)))

    def ours():
        moments = [concept_moments(batches, WIDTH, CPU) for _ in range(count)]
        return solve_ours(weights, moments, loras, prior)

    def theirs():
        per_layer.start()
        for lora in loras:
            for targets, _, _ in batches:
                per_layer.add(targets, lora)
        return per_layer.solve(prior)

    print(peak_extra(theirs if method == "per_layer" else ours))


def memory(count, prompts):
    """Peak extra bytes by way; None where /proc does not tell."""
    if not can_measure_memory():
        return None
    found = {}
    for method in ("ours", "per_layer"):
        log(f"memory: {method}")
        # Neither way's sums grow with prompts: two a concept show them, in a fraction of the time.
        asked = ("--memory-of", method, "--concepts", count, "--prompts", min(prompts, 2))
        found[method] = in_fresh_process("benchmarks.fusion", *asked)
    found["ours less kept moments"] = found["ours"] - count * WIDTH * (2 * WIDTH + 1) * 8  # A, and G and S packed
    return found


def report(result):
    """The figures as text."""
    row = result["row"]
    print(f"torch {result['torch']}, {result['threads']} threads, load {result['load']}; sums and solves in float64")
    print(
        f"{len(ROWS)} projections, {sum(ROWS)} rows, d = {WIDTH}; {result['concepts']} concepts with a LoRA of rank 1,"
    )
    print(f"{result['prompts']} prompts a concept, {WINDOW} positions\n")
    print("                 fusion alone   with refinement   of it the solve   second solve")
    note = "" if result["projections"] == len(ROWS) else f"  (scaled up from {result['projections']} projections)"
    theirs = f"{row['per_layer_s']:11.2f} s   {row['per_layer_s']:13.2f} s   {row['per_layer_solve_s']:13.2f} s"
    print(f"per layer       {theirs}   runs again{note}")
    mine = f"{row['ours_alone_s']:11.2f} s   {row['ours_s']:13.2f} s   {row['ours_solve_s']:13.2f} s"
    print(f"ours            {mine}   {row['ours_second_s']:10.2f} s")
    times = f"{row['alone_ratio']:11.1f}x   {row['ratio']:13.1f}x"
    print(f"times faster    {times}                     {row['second_ratio']:10.0f}x\n")
    print(
        f"second solve: every concept at strength {SECOND}, from the kept moments and LoRAs, all projections included\n"
        f"difference: |ours - per layer| / |per layer| of fused weights, the largest of the projections: "
        f"{row['difference']:.1e}\n"
        f"  of their change W* - W, which is {row['change']:.3f} of W at most: {row['difference_of_change']:.1e}"
    )
    if result["peak_extra_bytes"]:
        print("peak extra memory: resident high-water mark in a fresh process, fused weights included")
        for method, size in result["peak_extra_bytes"].items():
            print(f"  {method:22} {size / 1e6:8.1f} MB")
    print(f"kept by ours for each concept: {row['kept_bytes_a_concept'] / 1e6:.2f} MB")
    for name, met in result["targets"].items():
        print(f"target {name}: {'met' if met else 'not reached' if met is not None else 'not measured'}")
    print()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--concepts", type=int, default=100, help="number of concepts, each with a LoRA")
    parser.add_argument("--prompts", type=int, default=30, help="prompts a concept")
    parser.add_argument("--projections", type=int, default=len(ROWS), help="run the per-layer way on N of 32 and scale")
    parser.add_argument("--quick", action="store_true", help="2 concepts, 4 prompts")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not 1 <= arguments.projections <= len(ROWS):
        parser.error(f"--projections lies between 1 and {len(ROWS)}")
    count, prompts = (2, 4) if arguments.quick else (arguments.concepts, arguments.prompts)
    if arguments.memory_of:
        memory_child(arguments.memory_of, count, prompts)
        return
    weights, prior = make_model()
    warm = [concept_moments(make_concept(0, 2), WIDTH, CPU)]
    solve_ours(weights, warm, [make_lora(0)], prior)
    chosen = [i * len(ROWS) // arguments.projections for i in range(arguments.projections)]
    result = {"benchmark": "fusion", "torch": torch.__version__, "threads": torch.get_num_threads(), "load": load()}
    result |= {"dtype": "float64", "concepts": count, "prompts": prompts, "projections": len(chosen)}
    log(f"time: {count} concepts")
    result["row"] = measure(count, prompts, chosen, weights, prior)
    result["peak_extra_bytes"] = memory(count, prompts)
    row, large = result["row"], count >= 100
    second, alone, whole = row["ours_second_s"] < SECOND_LIMIT, row["alone_ratio"] >= RATIO, row["ratio"] >= RATIO
    met = {f"under {SECOND_LIMIT:.0f} s for another strength at 100 concepts": second}
    met |= {f"{RATIO:.0f} times faster, fusion alone": alone, f"{RATIO:.0f} times faster, with refinement": whole}
    result["targets"] = {name: value if large else None for name, value in met.items()}
    report(result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
