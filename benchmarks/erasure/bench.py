"""The host with the demo model, and the stages of an erasure by the pack's own nodes."""

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from benchmarks.erasure.questions import TEMPLATES, VARIED, Examiner, asked
from benchmarks.pictures import Studio, vocabulary
from devtools.cache import REPO
from devtools.demo_prior import captions, sentences
from devtools.identity_layers import skip_identity_layers
from mace.method.fuse import ALL_TO_REFINED, FuseWeights
from mace.pipeline.fusion import pull_name

PRIOR = "mace_demo_vocabulary_prior.safetensors"
PRESET = "demo model (mace_demo)"
LONG_LISTS = "demo model, lists of any length"
VOCABULARY = "vocabulary.txt"
STYLE, STYLE_LINE = "Twemoji", "Twemoji -> art"
STEPS = 8
MAPPINGS = {"airplane": "ground", "bird": "street", "cat": "forest", "deer": "street", "frog": "forest"}
MAPPINGS |= {"horse": "forest", "ship": "ground"}
PICTURES = dict(count=8, width=64, height=64, seed=0, steps=12, cfg=4.0, sampler_name="ddim", scheduler="normal")
AUTO_TRAIN = dict.fromkeys(("rank", "steps", "learning_rate", "loss", "end_of_text", "focus", "side_by_side"), "auto")
AUTO_TRAIN |= dict(projections="both", cfis=True, t1=200, t2=400, gamma=0.05, seed=0, save_memory=False)
CLOSED_FORM, NAIVE = "closed form (Eq. 7)", "naive sum (Eq. 6)"


@dataclass
class Work:
    """An erasure on its way: what the nodes gave so far, and the seconds that each stage took."""

    concepts: object
    refined: object = None
    refinement: object = None
    images: object = None
    masks: object = None
    loras: object = None
    singles: Sequence = ()
    near: Sequence[str] = ()
    seconds: dict[str, float] | None = None


def fuse_any_length(count: int) -> FuseWeights:
    """Eq. 7 for lists of any length: a prior that grows with the list and is held as the refined weights read it, so
    that it gives nothing back; mu in embeddings."""
    return FuseWeights(lambda2=0.1 * count, mu=1.0, pull=ALL_TO_REFINED)


def lend(host, kind: str, name: str) -> None:
    """Put a file of the demo's where a host looks for files of a kind."""
    folder = Path(host.folder_paths.get_folder_paths(kind)[0])
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(REPO / "assets/demo" / name, folder / name)


class Bench:
    """host: an InProcessHost.  steps: of the pictures that are judged.  clip: folder of a CLIP model that scores them
    too, as transformers saves it, or None."""

    def __init__(self, host, steps: int = STEPS, clip: Path | None = None):
        self.host = host
        lend(host, "mace_priors", PRIOR)
        self.model, self.clip, self.vae = self.host.load_checkpoint(self.host.demo_checkpoint)
        self.prior = self.host.run("MACE_LoadPrior", prior_name=PRIOR)[0]
        self.studio = Studio(self.host, self.clip, self.vae, steps)
        scorer = None if clip is None else self.host.module("nodes.host.judges.judges").ClipJudge(clip.name, clip)
        self.examiner = Examiner(self.studio, STYLE, scorer)
        self.words = vocabulary()
        presets = self.host.module("mace.presets.presets").PRESETS
        self.preset, self._long_lists = presets[PRESET], presets[LONG_LISTS]

    @contextmanager
    def any_length(self, wider: bool = False) -> Iterator[None]:
        """Weights for lists of any length meanwhile, with a prior of all the model's words that steps aside.

        wider: whether its captions have words around the names that the model does not know, as people's have.
        Text layers that are identities are not computed from then on: the same bits, sooner.
        """
        before = self.prior, self.preset
        skip_identity_layers(self.clip)
        folder = Path(self.host.folder_paths.get_input_directory())
        names = self.words["concepts"]
        # What is asked for is in no caption of it.
        judged = {form.format(name) for form in (*TEMPLATES, *VARIED) for name in names}
        lines = [line for line in [*captions(names), *(sentences(names) if wider else ())] if line not in judged]
        (folder / VOCABULARY).write_text("\n".join(lines), encoding="utf-8")
        every = dict(count=1_000_000, seed=0, preserve="", preserve_type="object", retention="none")
        self.prior = self.host.run("MACE_Prior", clip=self.clip, captions=VOCABULARY, **every)[0]
        self.preset = replace(self._long_lists, fuse=fuse_any_length)
        yield
        self.prior, self.preset = before

    @cached_property
    def synonyms(self) -> dict[str, list[str]]:
        """The synonyms of the CIFAR classes that the base model draws in half of the pictures or more.

        Only what the base model draws can be erased from it, or kept.
        """
        words = {word: name for name, found in self.words["synonyms"].items() for word in found}
        questions = asked(words)
        right = self.examiner.ask(self.model, questions, "base").right.view(len(words), len(TEMPLATES)).mean(dim=1)
        drawn = {word for word, share in zip(words, right.tolist(), strict=True) if share >= 0.5}
        return {name: [word for word in found if word in drawn] for name, found in self.words["synonyms"].items()}

    def concepts(self, objects: Sequence[str], style: bool = False, aliases: bool = False):
        """A list of concepts, with the paper's mappings. aliases: whether they carry their synonyms of Table 6."""
        chosen = dict(type="object", preset="none", prompt_file="none")
        found = None
        if objects:
            own = {name: [name, ", ".join(self.words["synonyms"].get(name, ()))] for name in objects}
            left = {name: " | ".join(filter(None, parts)) if aliases else name for name, parts in own.items()}
            lines = "\n".join(f"{left[name]} -> {MAPPINGS.get(name, 'sky')}" for name in objects)
            found = self.host.run("MACE_Concepts", concepts=lines, **chosen)[0]
        if style:
            more = {} if found is None else {"more": found}
            found = self.host.run("MACE_Concepts", concepts=STYLE_LINE, **{**chosen, "type": "style"}, **more)[0]
        return found

    def find_aliases(self, work: Work) -> None:
        """Training images, and what the model itself calls the same, as aliases from here on."""
        self.draw_training_images(work)
        usual = vars(self.host.module("nodes.stages.alias_words").AliasSettings())
        start, seen = time.perf_counter(), dict(model=self.model, clip=self.clip, images=work.images)
        work.concepts, work.images, _, near = self.host.run(
            "MACE_FindAliases", prior=self.prior, **seen, **usual
        ).result
        work.near = list(filter(None, near.split("\n")))
        work.seconds["find aliases"] = time.perf_counter() - start

    def keeping(self, words: Sequence[str]):
        """The prior, with some words preserved besides, as `keep_near` of Erase Concepts does."""
        concept, stage = self.host.module("mace.concepts.concept").Concept, self.host.module("mace.pipeline.prior")
        encoder, progress = self.host.module("nodes.host.text").TextEncoder, self.host.module("nodes.host.progress")
        with torch.inference_mode():
            kept = [concept(word, "", "object") for word in words]
            return stage.preserve_also(self.prior, kept, encoder(self.clip), progress.NodeProgress())

    def prepare(
        self, objects: Sequence[str], style: bool = False, aliases: bool = False, found: bool = False, **changed
    ) -> Work:
        """The concepts and their refinement, by the preset.

        found: whether aliases are looked for.  changed: settings of the node other than the preset's.
        """
        work = Work(self.concepts(objects, style, aliases), seconds={})
        if found:
            self.find_aliases(work)
        self.refine(work, **changed)
        return work

    def refine(self, work: Work, **changed) -> None:
        """The refinement of the concepts, by the preset. changed: inputs of the node other than those."""
        weights, run = self.preset.own_weights(work.concepts), self.host.run
        settings = dict(lambda1=repr(weights.lambda1), lambda3=repr(weights.lambda3), mu=repr(weights.mu))
        settings |= dict(strength=1.0, projections="both", lambda1_form="paper")
        settings["mu_measures"] = self.host.module("mace.pipeline.refine").MEASURE_NAMES[weights.metric]
        given = dict(model=self.model, concepts=work.concepts, prior=self.prior, clip=self.clip)
        start = time.perf_counter()
        work.refined, work.refinement = run("MACE_CFRRefine", **{**given, **settings, **changed}).result
        work.seconds["refine"] = time.perf_counter() - start

    def draw_training_images(self, work: Work) -> None:
        """Training images and masks, with the seconds that they take."""
        start, run = time.perf_counter(), self.host.run
        show = dict(model=self.model, vae=self.vae, concepts=work.concepts, prompt="auto", negative="", clip=self.clip)
        work.images = run("MACE_ConceptImages", **show, **PICTURES)[0]
        seeing = dict(model=self.model, images=work.images, backend="attention", clip=self.clip)
        work.masks = run("MACE_MaskConcept", **seeing)[0]
        work.seconds["images and masks"] = time.perf_counter() - start

    def train(self, work: Work, **settings) -> None:
        """The erasure LoRAs, with the seconds that they take. settings: of the node, other than the preset's."""
        if work.images is None:
            self.draw_training_images(work)
        start = time.perf_counter()
        training = dict(model=work.refined, images=work.images, masks=work.masks, clip=self.clip)
        training |= {"preset": PRESET, **AUTO_TRAIN, **settings}
        result = self.host.run("MACE_TrainErasureLora", **training).result
        work.loras, work.singles = result[:2]
        work.seconds["train"] = time.perf_counter() - start

    def fuse(self, work: Work, method: str = CLOSED_FORM):
        """The fused MODEL, by the preset's weights for as many concepts."""
        weights = self.preset.fuse(len(work.concepts))
        numbers = dict(lambda2=repr(weights.lambda2), lambda3=repr(weights.lambda3), mu=repr(weights.mu))
        given = dict(model=self.model, loras=work.loras, refinement=work.refinement, strengths="", method=method)
        start = time.perf_counter()
        fused = self.host.run("MACE_FuseLoras", **given, **numbers, pull=pull_name(weights))[0]
        if method == CLOSED_FORM:
            work.seconds["fuse"] = time.perf_counter() - start
        return fused

    def with_lora(self, work: Work, place: int):
        """The refined MODEL with one concept's LoRA on it, by the host's own loader."""
        import comfy_extras.nodes_train as theirs

        return theirs.LoraModelLoader.execute(work.refined, work.singles[place], 1.0, False).result[0]
