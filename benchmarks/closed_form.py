"""Closed-form refinement (Eq. 1, 2, 19) at the size of SD1.5: one transform from moments, against the per-layer method.

    python -m benchmarks.closed_form [--concepts 1,10,100] [--prompts 30] [--repeats 3] [--quick]

The per-layer method is Eq. 2 as printed (with W e_g in its first sum), streamed: for every prompt and each of the 32
matrices it materialises W e_g, adds sum (W e_g) e_f^T and sum e_f e_f^T, and solves for each matrix. Ours sums the
second moments of each concept once and solves for one transform. Both sum and solve in float64, both give float32
weights from the same float32 embeddings. Embeddings are synthetic, made outside of the timed region. All ratios are
of one run, with the two methods taking turns concept by concept. The last line is one JSON object.
"""

import argparse
import json
from dataclasses import fields
from statistics import median

import torch

from benchmarks.measure import can_measure_memory, in_fresh_process, load, log, peak_extra, timed
from benchmarks.synthetic import BATCH, CPU, ROWS, WIDTH, WINDOW, make_concept, make_model
from mace.method.moments import ConceptMoments, concept_moments
from mace.method.refine import RefineWeights, refinement, weight_delta

FIRST, SECOND = RefineWeights(lambda1=1e-4, mu=0.1), RefineWeights(lambda1=1e-3, mu=0.1)
MEMORY_LIMIT, KEPT_LIMIT = 200e6, 15e6
AGREEMENT = 1e-6


class PerLayer:
    """The per-layer method. Its float64 copies of the weights are made beforehand: neither timed nor counted."""

    def __init__(self, weights):
        self.weights = [weight.double() for weight in weights]

    def start(self):
        self.left = [torch.zeros_like(weight) for weight in self.weights]
        self.right = [torch.zeros(WIDTH, WIDTH, dtype=torch.float64) for _ in self.weights]

    def add(self, targets, mappings, pairings):
        for prompt, pairing in enumerate(pairings):
            f = targets[prompt, list(pairing.target)].double()
            g = mappings[prompt, list(pairing.mapping)].double()
            for weight, left, right in zip(self.weights, self.left, self.right, strict=True):
                value = weight @ g.T
                left.addmm_(value, f)
                right.addmm_(f.T, f)

    def solve(self, prior, by, projected=None):
        """The refined weights. projected: W P of each matrix, when it was kept."""
        refined = []
        for i, weight in enumerate(self.weights):
            kept = weight @ prior if projected is None else projected[i]
            system = self.right[i] + by.lambda1 * prior
            system.diagonal().add_(by.mu)
            numerator = self.left[i] + by.lambda1 * kept + by.mu * weight
            factor = torch.linalg.cholesky(system)
            refined.append(torch.cholesky_solve(numerator.T, factor).T.float())
        return refined


def solve_ours(weights, moments, prior, by):
    delta = refinement(moments, by, prior=prior)
    return [weight + weight_delta(weight, delta) for weight in weights]


def merged(total, more):
    """Running totals in place of kept moments: enough when no strength or concept will change."""
    if total is None:
        return more
    return ConceptMoments(*(getattr(total, f.name) + getattr(more, f.name) for f in fields(more)))


def measure(count, arguments, repeats, weights, prior):
    """Seconds of both methods for `count` concepts; medians over the repeats."""
    per_layer, samples = PerLayer(weights), []
    limit = arguments.per_layer_prompts or count * arguments.prompts
    for _ in range(repeats):
        moments, done, ours, theirs = [], 0, 0.0, timed(per_layer.start)[0]
        for index in range(count):
            batches = make_concept(index, arguments.prompts)
            seconds, found = timed(concept_moments, batches, WIDTH, CPU)
            ours += seconds
            moments.append(found)
            for batch in batches:
                part = [side[: limit - done] for side in batch]
                theirs += timed(per_layer.add, *part)[0]
                done += len(part[2])
            if index % 10 == 9:
                log(f"  {index + 1} of {count} concepts: ours {ours:.2f} s, per layer {theirs:.1f} s")
        theirs *= count * arguments.prompts / done
        my_solve, mine = timed(solve_ours, weights, moments, prior, FIRST)
        their_solve, reference = timed(per_layer.solve, prior, FIRST)
        projected = [weight @ prior for weight in per_layer.weights]
        again = median(timed(solve_ours, weights, moments, prior, SECOND)[0] for _ in range(3))
        kept = median(timed(per_layer.solve, prior, SECOND, projected)[0] for _ in range(3))
        samples.append((ours + my_solve, theirs + their_solve, ours, theirs, again, kept))
    names = ("ours_s", "per_layer_s", "ours_sums_s", "per_layer_sums_s", "ours_second_s", "per_layer_kept_second_s")
    row = {"concepts": count, "runs": repeats, "per_layer_extrapolated": limit < count * arguments.prompts}
    row |= {name: median(values) for name, values in zip(names, zip(*samples, strict=True), strict=True)}
    row["ratio"] = row["per_layer_s"] / row["ours_s"]
    row["second_ratio"] = row["per_layer_s"] / row["ours_second_s"]
    row["second_ratio_kept_sums"] = row["per_layer_kept_second_s"] / row["ours_second_s"]
    row["kept_bytes_a_concept"] = moments[0].bytes
    row["difference"] = None
    if not row["per_layer_extrapolated"]:
        row["difference"] = max(float((a - b).norm() / b.norm()) for a, b in zip(mine, reference, strict=True))
        row["change"] = max(float((b - w).norm() / w.norm()) for b, w in zip(reference, weights, strict=True))
        assert row["difference"] < AGREEMENT, row["difference"]
    return row


def bound(weights):
    """Seconds of the products that cannot be left out, alone: operands in float64, gathered, in place."""
    paired, all_tokens = (torch.randn(n, WIDTH, dtype=torch.float64) for n in (WINDOW - 3, WINDOW))
    cross, gram, total = (torch.zeros(WIDTH, WIDTH, dtype=torch.float64) for _ in range(3))
    delta = torch.randn(WIDTH, WIDTH) / WIDTH

    def update():
        for _ in range(100):
            cross.addmm_(paired.T, paired)
            gram.addmm_(paired.T, paired)
            total.addmm_(all_tokens.T, all_tokens)

    def apply():
        return [weight @ delta for weight in weights]

    system = torch.eye(WIDTH, dtype=torch.float64)
    system.addmm_(all_tokens.T, all_tokens)
    for call in (update, apply):
        call()
    return {
        "update_s": median(timed(update)[0] for _ in range(5)) / 100,
        "factor_s": median(timed(torch.linalg.cholesky, system)[0] for _ in range(9)),
        "apply_s": median(timed(apply)[0] for _ in range(5)),
    }


def memory_child(method, count, prompts):
    """In a fresh process: the resident high-water mark of one method above what lies in memory before it starts.

    One concept's embeddings stand in for all, so they are part of the baseline. The refined weights are counted.
    """
    weights, prior = make_model()
    batches = make_concept(0, prompts)
    per_layer = PerLayer(weights) if method == "per_layer" else None
    small = torch.eye(64, dtype=torch.float64)  # loads the libraries' code
    torch.cholesky_solve(small @ small, torch.linalg.cholesky(small)).float() @ small.float()

    def run():
        if per_layer:
            per_layer.start()
            for _ in range(count):
                for batch in batches:
                    per_layer.add(*batch)
            refined = per_layer.solve(prior, FIRST)
        elif method == "ours_summed":
            total = None
            for _ in range(count):
                total = merged(total, concept_moments(batches, WIDTH, CPU))
            refined = solve_ours(weights, [total], prior, FIRST)
        else:
            refined = solve_ours(weights, [concept_moments(batches, WIDTH, CPU) for _ in range(count)], prior, FIRST)
        assert len(refined) == len(ROWS)

    print(peak_extra(run))


def memory(counts, prompts):
    """Peak extra bytes by method and number of concepts; None where /proc does not tell."""
    if not can_measure_memory():
        return None
    found = {}
    for method in ("ours_summed", "ours_kept", "per_layer"):
        for count in counts:
            log(f"memory: {method}, {count} concepts")
            # The per-layer sums do not grow with prompts: two a concept show them, in a fraction of the time.
            size = min(prompts, 2) if method == "per_layer" else prompts
            asked = ("--memory-of", method, "--concepts", count, "--prompts", size)
            answer = in_fresh_process("benchmarks.closed_form", *asked)
            found.setdefault(method, {})[str(count)] = answer
    kept = WIDTH * (2 * WIDTH + 1) * 8  # A, and G and S packed
    found["less kept"] = {count: size - int(count) * kept for count, size in found["ours_kept"].items()}
    return found


def report(result):
    """The figures as a table."""
    print(f"torch {result['torch']}, {result['threads']} threads, load {result['load']}; sums and solves in float64")
    print(f"32 matrices, {sum(ROWS)} rows, d = {WIDTH}; {result['prompts']} prompts a concept, {WINDOW} positions\n")
    print("concepts  runs   per layer        ours   ratio  bound ours   second   ratio  kept sums  ratio  difference")
    for row in result["rows"]:
        difference = "-" if row["difference"] is None else f"{row['difference']:.1e}"
        print(
            f"{row['concepts']:8}  {row['runs']:4}  {row['per_layer_s']:8.2f} s  {row['ours_s']:8.3f} s "
            f"{row['ratio']:6.1f}x  {row['bound_s']:8.3f} s  {row['ours_second_s']:5.3f} s {row['second_ratio']:6.0f}x "
            f"   {row['per_layer_kept_second_s']:5.2f} s {row['second_ratio_kept_sums']:5.1f}x  {difference:>10}"
            + ("  (per layer extrapolated from its first prompts)" if row["per_layer_extrapolated"] else "")
        )
    alone = result["bound"]
    print(
        f"\nbound: {alone['update_s'] * 1e3:.2f} ms for three products a prompt (A, G, S; two do for ours), "
        f"{alone['factor_s'] * 1e3:.1f} ms for one Cholesky factor, {alone['apply_s'] * 1e3:.0f} ms for one float32 "
        "product a matrix, measured alone\n"
        "second: the same concepts with another lambda1, ours from its kept moments. The streaming per-layer method\n"
        "has no sums to reuse: its second run is the first again, so its first time is taken. 'kept sums' is a\n"
        "charitable per-layer method that kept its sums and W P of each matrix and only solves again.\n"
        "difference: |ours - per layer| / |per layer| of refined weights, the largest of the 32 matrices."
    )
    if result["peak_extra_bytes"]:
        print("\npeak extra memory in MB: resident high-water mark in a fresh process, refined weights included")
        for method, counts in result["peak_extra_bytes"].items():
            print(f"  {method:12}" + "".join(f"  {count:>4}: {size / 1e6:7.1f}" for count, size in counts.items()))
    print(f"kept by ours for each concept: {result['rows'][0]['kept_bytes_a_concept'] / 1e6:.2f} MB")
    for name, met in result["targets"].items():
        print(f"target {name}: {'met' if met else 'not reached' if met is not None else 'not measured'}")
    print()


def targets(result):
    """What the project aims at, at the largest number of concepts; None where this run does not say."""
    last, extra = result["rows"][-1], result["peak_extra_bytes"]
    full = last["concepts"] >= 100
    return {
        "30x at 100 concepts": last["ratio"] >= 30 if full else None,
        "50x for a second solve at 100 concepts": last["second_ratio"] >= 50 if full else None,
        "under 200 MB extra, kept moments apart": (
            max(*extra["ours_summed"].values(), *extra["less kept"].values()) < MEMORY_LIMIT if extra else None
        ),
        "under 15 MB kept a concept": last["kept_bytes_a_concept"] < KEPT_LIMIT,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--concepts", default="1,10,100", help="numbers of concepts, ascending")
    parser.add_argument("--prompts", type=int, default=30, help="prompts a concept")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each size; above 1000 prompts one")
    parser.add_argument("--per-layer-prompts", type=int, help="time the per-layer method on the first N and scale")
    parser.add_argument("--quick", action="store_true", help="1 and 2 concepts, 8 prompts, once")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.concepts, arguments.prompts, arguments.repeats = "1,2", 8, 1
    counts = [int(count) for count in arguments.concepts.split(",")]
    if arguments.memory_of:
        memory_child(arguments.memory_of, counts[0], arguments.prompts)
        return
    weights, prior = make_model()
    warm = [concept_moments(make_concept(0, BATCH), WIDTH, CPU)]
    solve_ours(weights, warm, prior, FIRST)
    result = {"benchmark": "closed_form", "torch": torch.__version__, "threads": torch.get_num_threads()}
    result |= {"dtype": "float64", "prompts": arguments.prompts, "load": load(), "bound": bound(weights), "rows": []}
    for count in counts:
        repeats = 1 if count * arguments.prompts > 1000 else arguments.repeats
        log(f"time: {count} concepts, {repeats} runs")
        row = measure(count, arguments, repeats, weights, prior)
        alone = result["bound"]
        row["bound_s"] = count * arguments.prompts * alone["update_s"] + alone["factor_s"] + alone["apply_s"]
        result["rows"].append(row)
    result["peak_extra_bytes"] = memory(counts, arguments.prompts)
    result["targets"] = targets(result)
    report(result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
