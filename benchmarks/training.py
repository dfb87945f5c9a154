"""Training of erasure LoRAs (Eq. 3, 4) on the demo model in the real ComfyUI: ours against the straightforward way.

    python dev.py run python -m benchmarks.training [--steps 50] [--concepts 10] [--repeats 3]

ours: nodes.stages.trainer.Trainer, each concept alone, and all side by side in one batch; prompts and pictures are
encoded once, and counted. straightforward (see benchmarks/straightforward.py): one concept after the other, batch 1; in
every step the host's text encoder encodes the prompt and its VAE the picture. cached: the same with both encoded once.

All train from the same refined model, pictures, masks, initial values and draws, for the same number of steps, and the
run fails unless their losses and LoRAs agree. Each makes one copy of the model that autograd can run through, and it is
counted: once a run for ours, once for all concepts together for the other two. Refining (by the first concept alone,
which is enough here), drawing the pictures and the masks are not counted. A step by itself is shown too, without any
encoding. The ways take turns concept by concept; seconds are medians. The last line is one JSON object.
"""

import argparse
import json
import logging
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

from benchmarks.measure import can_measure_memory, in_fresh_process, load, log, peak_extra, timed
from benchmarks.straightforward import Straightforward
from devtools.inprocess import REPO, open_host

# The demo model learns with this rate; at the paper's 1e-5 its LoRAs hardly move and would agree whatever they were.
RATE = 1e-3
PICTURES = dict(count=8, width=64, height=64, steps=4, cfg=4.0, sampler_name="ddim", scheduler="normal", seed=0)
LOSSES_AGREE, LORAS_AGREE = 1e-3, 1e-2
ALONE, TOGETHER, PLAIN, CACHED = "ours alone", "ours side by side", "straightforward", "cached"


class Bench:
    """The host with a refined model, and what each of `count` concepts trains on: (ConceptImages, masks)."""

    def __init__(self, base, count, steps):
        host = open_host(base)
        self.pack, self.steps = host.module, steps
        vocabulary = json.loads((REPO / "assets/demo/vocabulary.json").read_text(encoding="utf-8"))
        names = list(dict.fromkeys([*vocabulary["synonyms"], *vocabulary["concepts"]]))[:count]
        model, self.clip, self.vae = host.load_checkpoint(host.demo_checkpoint)
        lines = "\n".join(f"{name} -> sky" for name in names)
        concepts = host.run("MACE_Concepts", concepts=lines, type="object", preset="none", prompt_file="none")[0]
        auto = dict(lambda1="auto", lambda3="auto", mu="auto", projections="both", lambda1_form="paper")
        refine = dict(model=model, clip=self.clip, concepts=concepts[:1], strength=1.0, **auto)
        self.model = host.run("MACE_CFRRefine", **refine)[0]
        images, masks = self.pack("nodes.stages.images"), self.pack("nodes.stages.mask_making")
        with torch.inference_mode():
            drawn = images.make_images(model, self.clip, self.vae, concepts, "auto", "", PICTURES)
            found = masks.make_masks(model, self.clip, drawn, masks.ATTENTION)[0]
        self.concepts = [(entry, mask.clone()) for entry, mask in zip(drawn, found, strict=True)]

    def options(self, side_by_side):
        """The same for all ways but for the size of the batch."""
        return self.pack("mace.pipeline.train_options").TrainOptions(
            steps=self.steps, learning_rate=RATE, rank=1, side_by_side=side_by_side, again=True
        )

    def ours(self, concepts):
        """([(LoRA, losses [steps])], seconds a step) of concepts side by side, from pictures and prompts on."""
        training, images, ends = self.pack("nodes.stages.trainer"), self.pack("nodes.stages.images"), []
        trainer = training.Trainer(
            self.model, self.clip, self.options(len(concepts)), None, lambda *step: ends.append(time.perf_counter())
        )
        work = []
        for drawn, masks in concepts:
            with torch.inference_mode():
                encoded = images.own_images(self.vae, drawn.concept, drawn.template, drawn.as_image)
            work.append(training.Work(trainer.key(encoded, masks), encoded, masks))
        trained = trainer.run(work)
        a_step = (ends[-1] - ends[0]) / (len(ends) - 1)
        return [(trained[item.key].lora, trained[item.key].losses) for item in work], a_step

    def other(self, concept, cached):
        """(seconds of training, result, seconds of the model's copy, seconds of encoding) of one concept."""
        drawn, masks = concept
        settings = self.options(1).settings(drawn.concept.type)
        way = Straightforward(self.pack, self.clip, self.vae, settings, cached)
        opened = self.pack("nodes.host.model.forward").trainable_copy(self.model)
        copying, copy = timed(opened.__enter__)
        try:
            return *timed(way.train, copy, drawn, masks), copying, way.seconds
        finally:
            opened.__exit__(None, None, None)


def differences(found, expected):
    """How far (LoRA, losses) are from others': (losses, relative, the largest of all steps; B A of all projections)."""
    losses = ((found[1] - expected[1]).abs() / expected[1].abs()).max()
    missed, norm = 0.0, 0.0
    for key, (up, down) in expected[0].items():
        product = up.double() @ down.double()
        missed += (found[0][key][0].double() @ found[0][key][1].double() - product).square().sum()
        norm += product.square().sum()
    return float(losses), float((missed / norm).sqrt())


def measure(bench, repeats):
    """Seconds a concept of each way, and how far the results are apart."""
    count = len(bench.concepts)
    rounds = {round((i + 0.5) * count / repeats - 0.5) for i in range(repeats)}
    ways = (ALONE, TOGETHER, PLAIN, CACHED)
    seconds, steps, results = ({way: [] for way in ways} for _ in range(3))
    copies, encoding = [], {PLAIN: [], CACHED: []}

    def note(way, spent, a_step, among=1):
        seconds[way].append(spent / among)
        steps[way].append(a_step / among)

    for place, concept in enumerate(bench.concepts):
        log(f"time: concept {place + 1} of {count}")
        spent, (trained, a_step) = timed(bench.ours, [concept])
        note(ALONE, spent, a_step)
        results[ALONE] += trained
        for way in (PLAIN, CACHED):
            spent, trained, copying, inside = bench.other(concept, way == CACHED)
            note(way, spent, (spent - sum(inside.values())) / bench.steps)
            results[way].append(trained)
            copies.append(copying)
            encoding[way].append(inside)
        if place in rounds:
            spent, (results[TOGETHER], a_step) = timed(bench.ours, bench.concepts)
            note(TOGETHER, spent, a_step, count)
    copy = median(copies)
    row = {way: median(seconds[way]) + (copy / count if way in (PLAIN, CACHED) else 0.0) for way in ways}
    alone = {way: median(steps[way]) for way in ways}
    apart = {
        way: [max(side) for side in zip(*map(differences, results[way], results[PLAIN]), strict=True)]
        for way in (ALONE, TOGETHER, CACHED)
    }
    for way, (losses, loras) in apart.items():
        assert losses < LOSSES_AGREE and loras < LORAS_AGREE, (way, losses, loras)
    against = [(way, mine) for way in (PLAIN, CACHED) for mine in (ALONE, TOGETHER)]
    return {
        "seconds_a_concept": row,
        "ratios": {f"{way} / {mine}": row[way] / row[mine] for way, mine in against},
        "seconds_a_step": alone,
        "step_ratios": {f"{way} / {mine}": alone[way] / alone[mine] for way, mine in against},
        "copy_s": copy,
        "encoding_s": {
            way: {name: median(i[name] for i in all_) for name in all_[0]} for way, all_ in encoding.items()
        },
        "runs": {way: len(values) for way, values in seconds.items()},
        "differences": {way: {"losses": losses, "loras": loras} for way, (losses, loras) in apart.items()},
        "loss_end_to_start": median(float(losses[-5:].mean() / losses[:5].mean()) for _, losses in results[PLAIN]),
    }


def memory_child(bench, way):
    """In a fresh process: prints the peak of one way above what lies in memory before it starts."""
    if way in (PLAIN, CACHED):
        print(peak_extra(lambda: bench.other(bench.concepts[0], way == CACHED)))
    else:
        print(peak_extra(lambda: bench.ours(bench.concepts)))


def memory(count, steps):
    """Peak extra bytes by way; None where /proc does not tell. More steps need no more: three show it."""
    if not can_measure_memory():
        return None
    found = {}
    for way in (ALONE, TOGETHER, PLAIN, CACHED):
        log(f"memory: {way}")
        size = count if way == TOGETHER else 1
        asked = ("--memory-of", way, "--concepts", size, "--steps", min(steps, 3))
        found[way] = in_fresh_process("benchmarks.training", *asked)
    return found


def report(result):
    """The figures as a table."""
    print(f"torch {result['torch']}, {result['threads']} threads, load {result['load']}; demo model, float32")
    print(
        f"{result['concepts']} concepts, {result['steps']} steps each, rank 1, {PICTURES['count']} pictures of 64x64\n"
    )
    print("                    runs  seconds a concept  a step alone  straightforward is  cached is  peak extra memory")
    row, peaks, inside = result["seconds_a_concept"], result["peak_extra_bytes"], result["encoding_s"]
    for way, seconds in row.items():
        peak = f"{peaks[way] / 1e6:14.0f} MB" if peaks else "-"
        print(
            f"{way:18}  {result['runs'][way]:4}  {seconds:15.2f} s  {result['seconds_a_step'][way] * 1e3:9.1f} ms  "
            f"{row[PLAIN] / seconds:17.2f}x  {row[CACHED] / seconds:8.2f}x  {peak}"
        )
    each, once = inside[PLAIN], inside[CACHED]
    print(
        f"\nof these, encoding in every step takes {each['text']:.2f} s (text) and {each['vae']:.2f} s (VAE), encoding "
        f"once {once['text']:.2f} s and {once['vae']:.2f} s; a copy of the model {result['copy_s']:.2f} s."
    )
    print(
        "a step alone: of one concept, with its share of the batch where concepts stand side by side, encoding apart."
    )
    print("peak extra memory: resident high-water mark in a fresh process, the copy of the model included.")
    for way, apart in result["differences"].items():
        print(f"{way} against straightforward: losses {apart['losses']:.1e}, B A {apart['loras']:.1e} apart (relative)")
    print(f"the loss falls to {result['loss_end_to_start']:.2f} of its start (means of 5 steps)\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=50, help="training steps a concept")
    parser.add_argument("--concepts", type=int, default=10, help="number of concepts, all side by side in ours")
    parser.add_argument("--repeats", type=int, default=3, help="runs of all concepts side by side")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    logging.disable(logging.INFO)
    with tempfile.TemporaryDirectory() as base:
        bench = Bench(Path(base), arguments.concepts, arguments.steps)
        if arguments.memory_of:
            memory_child(bench, arguments.memory_of)
            return
        result = {"benchmark": "training", "torch": torch.__version__, "threads": torch.get_num_threads()}
        result |= {"load": load(), "steps": arguments.steps, "concepts": arguments.concepts}
        bench.steps = 2
        bench.ours(bench.concepts[:1])
        for cached in (False, True):
            bench.other(bench.concepts[0], cached)
        bench.steps = arguments.steps
        result |= measure(bench, arguments.repeats)
    result["peak_extra_bytes"] = memory(arguments.concepts, arguments.steps)
    report(result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
