"""What the judge sees before and after each stage of an erasure from the demo model, with the demo model's preset.

    python dev.py run python -m benchmarks.erasure [--task single] [--task ten] [--task shared] [--report]

single: each of the ten CIFAR-10 classes alone. ten: nine of them and the style Twemoji in one run. shared: words that a
kept concept shares with an erased one. Every erasure is saved in benchmarks/results/erasure.json when it is done, and
not repeated; --report writes docs/results.md of what is there. All stages and the base model draw from the same noise.
Prompts and seeds are other ones than those the settings were searched with. The last line is one JSON object.
"""

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.erasure_report import write_report
from benchmarks.pictures import Studio, vocabulary
from devtools.inprocess import REPO, open_host

RESULTS = REPO / "benchmarks" / "results" / "erasure.json"
PRIOR = "mace_demo_vocabulary_prior.safetensors"
PRESET = "demo model (mace_demo)"
TEMPLATES = ("a photo of the {}", "an illustration of the {}")
SEED, STEPS, EVERY = 9000, 8, 6
MAPPINGS = {"airplane": "ground", "bird": "street", "cat": "forest", "deer": "street", "frog": "forest"}
MAPPINGS |= {"horse": "forest", "ship": "ground"}
TEN = ("airplane", "automobile", "bird", "deer", "dog", "frog", "horse", "ship", "truck")
SHARED = {"dog": ("hot dog",), "fire": ("fire engine", "fireworks")}
PICTURES = dict(count=8, width=64, height=64, seed=0, steps=12, cfg=4.0, sampler_name="ddim", scheduler="normal")
AUTO_TRAIN = dict.fromkeys(("rank", "steps", "learning_rate", "loss", "end_of_text", "focus", "side_by_side"), "auto")
AUTO_TRAIN |= dict(projections="both", cfis=True, t1=200, t2=400, gamma=0.05, seed=0, save_memory=False)


class Bench:
    """The host with the demo model, and the stages of an erasure by the pack's own nodes.

    templates, seed, steps: of the pictures that are judged.
    """

    def __init__(self, base: Path, templates=TEMPLATES, seed=SEED, steps=STEPS):
        self.templates, self.seed = templates, seed
        self.host = open_host(base)
        (base / "models/mace_priors").mkdir(parents=True, exist_ok=True)
        shutil.copyfile(REPO / "assets/demo" / PRIOR, base / "models/mace_priors" / PRIOR)
        self.model, self.clip, self.vae = self.host.load_checkpoint(self.host.demo_checkpoint)
        self.prior = self.host.run("MACE_LoadPrior", prior_name=PRIOR)[0]
        self.studio = Studio(self.host, self.clip, self.vae, steps)
        self.words = vocabulary()
        self.preset = self.host.module("mace.presets").PRESETS[PRESET]
        self._base = None
        drawn = self.known(self.model, list(self.words["synonyms"]))
        # Only what the base model draws can be erased from it, or kept.
        self.synonyms = {name: [w for w, ok in drawn[name].items() if ok >= 0.5] for name in drawn}

    def known(self, model, names):
        """By name, the share of pictures of each of its synonyms that show the name."""
        asked = [
            (t.format(word), name) for name in names for word in self.words["synonyms"][name] for t in self.templates
        ]
        right = iter(self.studio.right(model, asked, self.seed).view(-1, len(self.templates)).mean(dim=1).tolist())
        return {name: {word: next(right) for word in self.words["synonyms"][name]} for name in names}

    def concepts(self, objects, style=None):
        """A list of concepts, with the paper's mappings."""
        lines = "\n".join(f"{name} -> {MAPPINGS.get(name, 'sky')}" for name in objects)
        chosen = dict(type="object", preset="none", prompt_file="none")
        found = self.host.run("MACE_Concepts", concepts=lines, **chosen)[0]
        if style:
            found = self.host.run("MACE_Concepts", concepts=style, **{**chosen, "type": "style"}, more=found)[0]
        return found

    def stages(self, objects, style=None):
        """(MODELs by stage, seconds of each stage). LoRA: every concept's own on the refined model, by concept."""
        weights, seconds, start = self.preset, {}, time.perf_counter()

        def lap(name):
            nonlocal start
            seconds[name] = round(time.perf_counter() - start, 2)
            start = time.perf_counter()

        run, common = self.host.run, dict(clip=self.clip)
        chosen = self.concepts(objects, style)
        numbers = dict(lambda1=repr(weights.refine.lambda1), lambda3=repr(weights.refine.lambda3))
        settings = dict(strength=1.0, mu=repr(weights.refine.mu), projections="both", lambda1_form="paper", **numbers)
        settings["mu_measures"] = self.host.module("nodes.refine").MEASURE_NAMES[weights.refine.metric]
        node = run("MACE_CFRRefine", model=self.model, concepts=chosen, prior=self.prior, **settings, **common)
        refined, refinement = node.result
        lap("refine")
        show = dict(model=self.model, vae=self.vae, concepts=chosen, prompt="auto", negative="", **PICTURES)
        images = run("MACE_ConceptImages", **show, **common)[0]
        masks = run("MACE_MaskConcept", model=self.model, images=images, backend="attention", **common)[0]
        lap("images and masks")
        training = dict(model=refined, images=images, masks=masks, preset=PRESET, **AUTO_TRAIN)
        loras, singles = run("MACE_TrainErasureLora", **training, **common).result[:2]
        lap("train")
        fusing = dict(model=self.model, loras=loras, refinement=refinement, strengths="")
        fuse = weights.fuse(len(chosen))
        fusing |= dict(lambda2=repr(fuse.lambda2), lambda3=repr(fuse.lambda3), mu=repr(fuse.mu))
        fusing |= dict(pull="refined weights (release)")
        fused = run("MACE_FuseLoras", method="closed form (Eq. 7)", **fusing)[0]
        lap("fuse")
        naive = run("MACE_FuseLoras", method="naive sum (Eq. 6)", **fusing)[0]
        own = {}
        for concept, single in zip(loras.concepts, singles, strict=True):
            own[concept.target] = self.with_lora(refined, single)
        return {"refined": refined, "LoRA": own, "fused": fused, "naive": naive}, seconds

    @staticmethod
    def with_lora(model, lora):
        """The MODEL with one LoRA on it, by the host's own loader."""
        import comfy_extras.nodes_train as theirs

        return theirs.LoraModelLoader.execute(model, lora, 1.0, False).result[0]

    def others(self, erased, all_of_them):
        """(prompt, name) of what is to stay: the other CIFAR classes, and the vocabulary or each EVERY-th of it."""
        cifar = [name for name in self.words["synonyms"] if name not in erased]
        rest = [name for name in self.words["concepts"] if name not in self.words["synonyms"]]
        asked = [(t.format(name), name) for name in cifar for t in self.templates]
        # Each thing has one prompt of its own, whatever is erased.
        names = [(self.templates[i % len(self.templates)].format(name), name) for i, name in enumerate(rest)]
        names = [question for question in names if question[1] not in erased]
        return asked, names if all_of_them else names[::EVERY]

    def right_of_base(self, cifar, rest):
        """The base model's answers, drawn once for all erasures: its pictures do not depend on what is erased."""
        if self._base is None:
            every, names = self.others((), True)
            asked = [*every, *names]
            self._base = dict(zip(asked, self.studio.right(self.model, asked, self.seed), strict=True))
        return torch.stack([self._base[question] for question in (*cifar, *rest)])

    def measure(self, model, erased, all_others=False, style=None, what=("erased", "synonyms", "others")):
        """Accuracies of one model, in 0..1, by what is asked for."""
        found = {}
        if "erased" in what:
            asked = [(t.format(name), name) for name in erased for t in self.templates]
            right = [self.studio.right(model, asked, self.seed + 100 * k) for k in range(2 if len(erased) > 1 else 4)]
            found["erased"] = float(sum(r.mean() for r in right) / len(right))
        names = {w: name for name in erased for w in self.synonyms.get(name, ())}
        if "synonyms" in what and names:
            asked = [(t.format(word), name) for word, name in names.items() for t in self.templates]
            right = self.studio.right(model, asked, self.seed)
            found["synonyms"] = float(right.mean())
        if "others" in what:
            cifar, rest = self.others(erased, all_others)
            right = self.right_of_base(cifar, rest) if model is self.model else None
            if right is None:
                right = self.studio.right(model, [*cifar, *rest], self.seed)
            if cifar:
                found["CIFAR others"] = float(right[: len(cifar)].mean())
            found["others"] = float(right.mean())
            found["pictures of others"] = len(right)
            found["lost"] = [name for (_, name), ok in zip([*cifar, *rest], right.tolist(), strict=True) if not ok]
        if style:
            prompts = [f"a {style} emoji of a {name}" for _, name in self.others(erased, False)[1]]
            found["style"] = float(self.studio.in_style(model, prompts, style, self.seed).mean())
        return found

    def single(self, name):
        """One concept alone, every stage."""
        models, seconds = self.stages([name])
        result = {"seconds": seconds, "base": self.measure(self.model, [name], True)}
        for stage, model in models.items():
            result[stage] = self.measure(model[name] if stage == "LoRA" else model, [name], stage == "fused")
        return result

    def ten(self):
        """Nine objects and a style."""
        models, seconds = self.stages(TEN, "Twemoji -> art")
        style = "Twemoji"
        result = {"seconds": seconds, "base": self.measure(self.model, TEN, True, style)}
        own = [self.measure(models["LoRA"][name], [name], what=("erased", "synonyms")) for name in TEN]
        for part in ("erased", "synonyms"):
            values = [entry[part] for entry in own if part in entry]
            result.setdefault("LoRA", {})[part] = sum(values) / len(values)
        for stage in ("refined", "fused", "naive"):
            result[stage] = self.measure(models[stage], TEN, stage == "fused", style)
        return result

    def shared(self, name):
        """One concept, and the kept concepts whose names hold its word."""
        models, _ = self.stages([name])
        kept = [(t.format(word), word) for word in SHARED[name] for t in self.templates]
        models = {"base": self.model, **models, "LoRA": models["LoRA"][name]}
        return {
            stage: {
                "erased": self.measure(model, [name], what=("erased",))["erased"],
                "kept": float(sum(self.studio.right(model, kept, self.seed + 100 * k).mean() for k in range(4)) / 4),
            }
            for stage, model in models.items()
        }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", action="append", choices=("single", "ten", "shared"), default=[])
    parser.add_argument("--only", help="one concept of the task single")
    parser.add_argument("--report", action="store_true")
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="the file of results, in place of the recorded one"
    )
    options = parser.parse_args()
    results = json.loads(options.results.read_text(encoding="utf-8")) if options.results.exists() else {}
    work = []
    for task in options.task:
        names = {"single": list(vocabulary()["synonyms"]), "ten": ["ten"], "shared": list(SHARED)}[task]
        work += [(task, name) for name in names if options.only in (None, name) and name not in results.get(task, {})]
    if work:
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(Path(folder))
            for task, name in work:
                found = bench.ten() if task == "ten" else getattr(bench, task)(name)
                results.setdefault(task, {})[name] = found
                options.results.write_text(json.dumps(results, indent=1), encoding="utf-8")
                print(task, name, {stage: part for stage, part in found.items() if stage != "seconds"}, flush=True)
    if options.report:
        write_report(results, REPO / "docs" / "results.md")
    print(json.dumps({task: len(found) for task, found in results.items()}))


if __name__ == "__main__":
    main()
