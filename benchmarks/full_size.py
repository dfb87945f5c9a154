"""Every stage of the pack on a checkpoint of true size with random weights: time and peak memory of each.

    python dev.py run python -m benchmarks.full_size --kind sd15 [--concepts 1 10] [--steps 50] [--images 8] ...

or with plain python, from the repository, where MACE_COMFYUI names the host's folder. Each stage runs through the
pack's node in the real host, once, one after the other, so that a stage finds what the ones before it left: models on
the device, moments and pictures that are kept (`new` counts what is not). A stage that fails says so in its row, and
what does not need it goes on. The weights are random (see devtools.random_models), so nothing is said of erasing.

peak: on a device the most that torch had allocated, on a CPU the process's resident high-water mark; extra: that above
what was there before the stage; device: the most that was taken of the GPU, by anyone, asked every 10 ms (the host's
dynamic memory manager keeps weights outside of torch's allocator). Before every stage torch's cache is emptied. The
last line is one JSON object; --out keeps a file up to date with it after every stage.
"""

import json
import logging
import os
import platform
import re
import sys
import tempfile
import time
import traceback
from pathlib import Path
from unittest import mock

import torch

from benchmarks.full_size_options import ALIASES, FUSE, IMAGES, PRECISIONS, REFINE, TRAIN, read_options
from benchmarks.full_size_table import COLUMNS, DEVICE, Peak, line, statistics
from benchmarks.measure import load, timed
from devtools import random_models
from devtools.inprocess import REPO, InProcessHost

# Of a concept, as the node has it.
ASKED = 4


class Missing(Exception):
    """What a stage needs was not made, because the stage before it failed."""


def text_of(node):
    """The lines a node says of its run."""
    ui = node.ui if isinstance(node.ui, dict) else node.ui.as_dict()
    return "\n".join(ui.get("text", ())).splitlines()


class Bench:
    """The stages, and a row of figures for each that ran."""

    def __init__(self, arguments, base):
        self.arguments, self.base, self.rows, self.made = arguments, base, [], {}
        sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != REPO]
        comfy = Path(os.environ["MACE_COMFYUI"])
        options = ["--bf16-unet"] if arguments.bf16_unet else []
        self.host = InProcessHost(comfy, REPO, base, None, not DEVICE, arguments.dynamic, options)
        self.pack = self.host.module
        self.ballast = torch.empty(0, dtype=torch.uint8)
        if DEVICE and arguments.ballast is not None:
            free, _ = statistics.mem_get_info()
            self.ballast = torch.empty(max(free - int(arguments.ballast * 2**30), 0), dtype=torch.uint8, device=DEVICE)

    def __getitem__(self, name):
        if name not in self.made:
            raise Missing(f"skipped: {name} was not made")
        return self.made[name]

    def stage(self, name, call, keep=None, **facts):
        """Run call(row), which may add to the row; what it returns is kept under `keep` for later stages."""
        row = {"stage": name, **facts}
        print(f"... {name} {facts or ''}", file=sys.stderr, flush=True)
        with Peak(self.ballast.nbytes) as peak:
            start = time.perf_counter()
            try:
                with torch.inference_mode():
                    found = call(row)
                if DEVICE:
                    statistics.synchronize()
                row["seconds"] = time.perf_counter() - start
                if keep is not None:
                    self.made[keep] = found
            except Exception as error:
                row["error"] = f"{type(error).__name__}: {error}".splitlines()[0]
                if not isinstance(error, Missing):
                    row["trace"] = traceback.format_exc().splitlines()[-8:]
                    traceback.print_exc()
        self.rows.append(row | peak.found)
        print(line(self.rows[-1]), flush=True)
        if self.arguments.out:
            self.arguments.out.write_text(json.dumps(self.result(), indent=1) + "\n", encoding="utf-8")

    def concepts(self, count):
        """The first so many of the paper's hundred people, as the node gives them."""
        names = [entry.target for entry in self.pack("mace.concepts.lists").PAPER_LISTS["100 celebrities"]]
        lines = "\n".join(f"{name} -> a person" for name in names[:count])
        return self.host.run("MACE_Concepts", concepts=lines, type="celebrity", preset="none", prompt_file="none")[0]

    def run(self):
        """All stages."""
        a, stage = self.arguments, self.stage
        path = a.checkpoint or self.base / "models/checkpoints/random.safetensors"
        if not path.exists():
            stage("make the checkpoint", lambda row: self.make(path))
        stage("load checkpoint", lambda row: self.load(path, row), "loaded")
        stage("Prior", self.prior, "prior", captions=a.captions)
        seen = 0
        for n in sorted({*a.refine, *a.concepts, *([a.fuse] if a.fuse else [])}):
            stage("CFR Refine", lambda row, n=n: self.refine(n), f"refined {n}", concepts=n, new=n - seen)
            stage("  its closed form alone", lambda row, n=n: self.solve(n, row), concepts=n)
            seen = n
        stage("hash of the model", lambda row: self.pack("nodes.host.kept.content").model_sha256(self["loaded"][0]))
        if a.concepts:
            # Train Erasure LoRA makes one itself: its share of that stage.
            stage("a copy to train on", lambda row: self.copy(self[f"refined {max(a.concepts)}"][0]))
        seen = 0
        for n in sorted(a.concepts):
            drawn = dict(concepts=n, new=n - seen, images=a.images, draw_steps=a.draw_steps)
            stage("Concept Images", lambda row, n=n: self.images(n), f"images {n}", **drawn)
            if a.words:
                asked = dict(concepts=n, new=n - seen, words=a.words, images=min(a.images, ASKED))
                stage("Find Aliases", lambda row, n=n: self.aliases(n), **asked)
            stage("Mask Concept", lambda row, n=n: self.masks(n, row), f"masks {n}", concepts=n, images=a.images)
            stage("Train Erasure LoRA", lambda row, n=n: self.train(n, row), f"loras {n}", concepts=n, steps=a.steps)
            stage("Fuse LoRAs", lambda row, n=n: self.fuse(self[f"loras {n}"]), f"fused {n}", concepts=n)
            stage("  its closed form alone", lambda row, n=n: self.solve_fusion(self[f"loras {n}"], n, row), concepts=n)
            seen = n
        if a.fuse:
            # In two stages: drawing the values is no part of the fusion.
            stage("random LoRAs", lambda row: self.synthetic(a.fuse), "synthetic", concepts=a.fuse)
            facts = dict(concepts=a.fuse, random=True)
            stage("Fuse LoRAs", lambda row: self.fuse(self["synthetic"]), "fused random", **facts)
            stage("  its closed form alone", lambda row: self.solve_fusion(self["synthetic"], a.fuse, row), **facts)
        last = f"fused {max(a.concepts)}" if a.concepts else "fused random"
        stage("Save Erased Model", lambda row: self.save(self[last], row), "saved")
        stage("reload what was saved", lambda row: self.reload(self[last], row))

    def make(self, path):
        a = self.arguments
        random_models.make_checkpoint(path, a.kind, a.small, PRECISIONS[a.precision])

    def load(self, path, row):
        found = random_models.load(path, self.arguments.small)
        network = found[0].model
        row |= {"file_bytes": path.stat().st_size, "model_type": network.model_type.name}
        row |= {"computes_in": str(network.get_dtype_inference()), "weights_in": str(network.get_dtype())}
        row |= {"manager": type(found[0]).__name__}
        return found

    def prior(self, row):
        settings = dict(count=self.arguments.captions, seed=0, preserve="", preserve_type="object", retention="none")
        return self.host.run("MACE_Prior", clip=self["loaded"][1], captions="built-in", **settings)[0]

    def refine(self, count):
        model, clip, _ = self["loaded"]
        given = dict(model=model, clip=clip, concepts=self.concepts(count), prior=self["prior"], **REFINE)
        return self.host.run("MACE_CFRRefine", **given).result

    def solve(self, count, row):
        """The method's solve as CFR Refine calls it, on the device, from moments that are there; twice."""
        done = self[f"refined {count}"][1]
        device = self["loaded"][0].load_device
        general, solve = done.prior.general_moment(), self.pack("mace.method.refine").refinement
        for name in ("first", "second"):
            # The norm waits for the device.
            row[name], _ = timed(lambda: float(solve(done.moments, done.weights, general, None, device=device).norm()))

    def solve_fusion(self, loras, count, row):
        """As `solve`, of the fusion: Eq. 7, and the refinement in it."""
        done, device = self[f"refined {count}"][1], self["loaded"][0].load_device
        method, pull = self.pack("mace.method.fuse"), self.pack("mace.pipeline.fusion").TOWARDS[FUSE["pull"]]
        weights = method.FuseWeights(done.weights.lambda1, done.weights.lambda3, done.weights.mu, pull)
        given = (done.moments, [entry.lora for entry in loras.loras], done.weights, weights)
        general = done.prior.general_moment()
        for name in ("first", "second"):
            row[name], _ = timed(lambda: float(method.fuse(*given, general, device=device).shared.norm()))

    def images(self, count):
        model, clip, vae = self["loaded"]
        a = self.arguments
        settings = IMAGES | dict(count=a.images, width=a.size, height=a.size, steps=a.draw_steps)
        concepts = self.concepts(count)
        return self.host.run("MACE_ConceptImages", model=model, clip=clip, vae=vae, concepts=concepts, **settings)[0]

    def aliases(self, count):
        model, clip, _ = self["loaded"]
        given = dict(model=model, clip=clip, images=self[f"images {count}"], **ALIASES)
        # Random weights may explain pictures by no words best, which the node refuses: any order of the words will do.
        search = self.pack("nodes.stages.alias_search")
        with mock.patch.object(search, "explained", lambda errors, own, empty: -errors.double().sum(1)):
            self.host.run("MACE_FindAliases", **given, nearest=self.arguments.words, pictures=ASKED)

    def masks(self, count, row):
        model, clip, _ = self["loaded"]
        given = dict(model=model, clip=clip, images=self[f"images {count}"])
        masks = self.host.run("MACE_MaskConcept", **given, backend="attention")[0]
        row["masked"] = float(masks.mean())
        return masks

    def copy(self, refined):
        with self.pack("nodes.host.model.forward").trainable_copy(refined):
            pass

    def train(self, count, row):
        a = self.arguments
        settings = TRAIN | dict(steps=str(a.steps), side_by_side=a.side_by_side, save_memory=a.save_memory)
        given = dict(model=self[f"refined {count}"][0], clip=self["loaded"][1], images=self[f"images {count}"])
        # Every count is to train all of its own.
        self.host.forget_trained()
        start = time.perf_counter()
        node = self.host.run("MACE_TrainErasureLora", **given, masks=self[f"masks {count}"], **settings)
        said = text_of(node)
        side = [re.search(r"(\d+) side by side", text) for text in said]
        row["side_by_side"] = next((int(found[1]) for found in side if found), None)
        row |= {"seconds_a_concept_step": (time.perf_counter() - start) / (count * a.steps), "said": said[:12]}
        return node[0]

    def synthetic(self, count):
        """As many LoRAs of rank 1 as the fusion takes, of the refinement's concepts."""
        model, sets = self["loaded"][0], self.pack("mace.formats.lora_set")
        refinement = self[f"refined {count}"][1]
        digest = self.pack("mace.formats.lora_set").refinement_digest(refinement)
        state = model.model.state_dict()
        keys = self.pack("nodes.host.model.unet").cross_attention_keys(model)
        shapes = {key: tuple(state[key].shape) for key in keys}
        loras = []
        for place, (concept, moments) in enumerate(zip(refinement.concepts, refinement.moments, strict=True)):
            draw = torch.Generator().manual_seed(place)
            pairs = {
                key: (1e-3 * torch.randn(rows, 1, generator=draw), torch.randn(1, width, generator=draw))
                for key, (rows, width) in shapes.items()
            }
            loras.append(sets.ErasureLora(concept, pairs, torch.zeros(0), {}, moments, digest))
        family = self.pack("nodes.host.model.family")
        recipe = sets.recipe_of(refinement, digest)
        return sets.LoraSet(tuple(loras), recipe, family.res_blocks(model), family.family(model))

    def fuse(self, loras):
        return self.host.run("MACE_FuseLoras", model=self["loaded"][0], loras=loras, **FUSE)[0]

    def save(self, fused, row):
        _, clip, vae = self["loaded"]
        names = dict(filename_prefix="checkpoints/full_size", dtype="as loaded")
        path = Path(text_of(self.host.run("MACE_SaveErasedModel", model=fused, clip=clip, vae=vae, **names))[0])
        row["file_bytes"] = path.stat().st_size
        return path

    def reload(self, fused, row):
        """The file again by the host's loader: the same family, and weights that are the fused ones."""
        model, clip, _ = random_models.load(self["saved"], self.arguments.small)
        unet, cpu = self.pack("nodes.host.model.unet"), torch.device("cpu")
        apart, before, after = 0.0, fused.get_key_patches("diffusion_model."), model.get_key_patches("diffusion_model.")
        for key in unet.cross_attention_keys(model):
            wanted, found = (unet.effective_weight(patches[key], key, cpu) for patches in (before, after))
            apart = max(apart, float((wanted - found).norm() / wanted.norm()))
        latents = self.host.sample(model, clip, "a photo of a person", steps=2, sampler="euler")
        row |= {"weights_apart": apart, "model_type": model.model.model_type.name}
        row["finite"] = bool(torch.isfinite(latents).all())
        if row["model_type"] != self["loaded"][0].model.model_type.name or apart > 0.01 or not row["finite"]:
            raise RuntimeError(f"the saved file is another model: {row}")

    def result(self):
        a = self.arguments
        options = {name: value.name if isinstance(value, Path) else value for name, value in vars(a).items()}
        device = statistics.get_device_name() if DEVICE else platform.processor() or platform.machine()
        about = {"benchmark": "full_size", "kind": a.kind, "device": device, "torch": torch.__version__}
        return about | {"threads": torch.get_num_threads(), "load": load(), "options": options, "rows": self.rows}


def main():
    arguments = read_options(__doc__.splitlines()[0])
    logging.disable(logging.INFO)
    with tempfile.TemporaryDirectory() as base:
        bench = Bench(arguments, Path(base))
        found = bench.result()
        print(
            f"{arguments.kind}, {arguments.precision}, {found['device']}, torch {found['torch']}; memory in GB",
            flush=True,
        )
        print(f"{'stage':24}{'seconds':>9}" + "".join(f"{name:>9}" for name in COLUMNS), flush=True)
        bench.run()
        found = bench.result()
    if arguments.record:
        device = re.sub(r"[^a-z0-9]+", "_", found["device"].lower()).strip("_")
        path = REPO / f"benchmarks/results/full_size_{arguments.kind}_{device}.json"
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
