"""A small trained SD3 or SDXL in the host, refined by CFR Refine, and what is asked of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.demo_model.checkpoint import write
from benchmarks.demo_model.denoisers import skip_idle
from benchmarks.erasure.bench import MAPPINGS, STYLE
from benchmarks.erasure.questions import SEED, TEMPLATES, Examiner, Question, asked
from benchmarks.pictures import Studio, vocabulary
from devtools.demo_prior import captions
from devtools.inprocess import open_host
from mace.method.refine import ALIKE, READING

# Weights of CFR Refine: lambda1, mu, what mu measures in.
Weights = tuple[str, str, str]
# Those to search among.
GRID: tuple[Weights, ...] = (
    ("0", "10", ALIKE), ("1e-4", "1", ALIKE), ("1e-3", "10", ALIKE),
    ("1e-4", "1e3", READING), ("1e-4", "1e4", READING), ("1e-3", "1e5", READING),
)  # fmt: skip
CAPTIONS = "vocabulary.txt"
# Of the text encoders; the others are identities.
LIVE_LAYERS = 2
# Of the demo model's captions one in so many is read, of the other things one in so many asked for.
EVERY_CAPTION, EVERY = 3, 6


@dataclass(frozen=True)
class Kind:
    """How a family is drawn with. channels: of its latents.  idle: whether some of its blocks are identities."""

    steps: int
    sampler: str
    channels: int
    idle: bool = False


SD3, SDXL = Kind(10, "euler", 16), Kind(10, "ddim", 4, idle=True)


class Small:
    """A small model in the host. compact: its file.  prior: whether one is made."""

    def __init__(self, folder: Path, compact: Path, kind: Kind, prior: bool = True):
        self.host = open_host(folder)
        checkpoint = folder / "small.safetensors"
        write(compact, checkpoint)
        self.model, self.clip, self.vae = self.host.load_checkpoint(checkpoint)
        if kind.idle:
            skip_idle(self.model.model.diffusion_model)
            for encoder in (self.clip.cond_stage_model.clip_l, self.clip.cond_stage_model.clip_g):
                for layer in encoder.transformer.text_model.encoder.layers[LIVE_LAYERS:]:
                    layer.forward = lambda x, *given: x
        studio = Studio(self.host, self.clip, self.vae, kind.steps, kind.sampler, pooled=True, channels=kind.channels)
        self.studio, self.examiner, self.words = studio, Examiner(studio, STYLE), vocabulary()
        self.prior = None
        if prior:
            self.make_prior(captions()[::EVERY_CAPTION])
        self.measures = self.host.module("mace.pipeline.refine").MEASURE_NAMES

    def make_prior(self, lines: Sequence[str]) -> None:
        """A prior of some captions, from here on."""
        path = Path(self.host.folder_paths.get_input_directory()) / CAPTIONS
        path.write_text("\n".join(lines), encoding="utf-8")
        every = dict(captions=CAPTIONS, count=1_000_000, seed=0, preserve="", preserve_type="object", retention="none")
        self.prior = self.host.run("MACE_Prior", clip=self.clip, model=self.model, **every)[0]

    def questions(self, erased: Sequence[str], seed: int = SEED) -> dict[str, list[Question]]:
        """By group: the erased names, their synonyms, the other CIFAR classes, and other things."""
        synonyms = {word: name for name in erased for word in self.words["synonyms"].get(name, ())}
        classes = [name for name in self.words["synonyms"] if name not in erased]
        rest = [name for name in self.words["concepts"] if name not in self.words["synonyms"]]
        others = [asked([name], (TEMPLATES[i % 2],), seed=seed) for i, name in enumerate(rest)]
        return {
            "erased": asked(erased, seeds=max(1, 4 // len(erased)), seed=seed),
            "synonyms": asked(synonyms, seed=seed),
            "classes": asked(classes, seed=seed),
            "others": sum(others[::EVERY], []),
        }

    def chosen(self, erased: Sequence[str]):
        """The concepts' list, each with its mapping."""
        lines = "\n".join(f"{name} -> {MAPPINGS.get(name, 'sky')}" for name in erased)
        return self.host.run("MACE_Concepts", concepts=lines, type="object", preset="none", prompt_file="none")[0]

    def refined(self, erased: Sequence[str], weights: Weights, own_words: str, pooled: bool):
        """The MODEL without some concepts, by CFR Refine."""
        lambda1, mu, metric = weights
        return self.host.run(
            "MACE_CFRRefine", model=self.model, clip=self.clip, concepts=self.chosen(erased), prior=self.prior,
            strength=1.0, lambda1=lambda1, lambda3="0", mu=mu, projections="both", lambda1_form="paper",
            mu_measures=self.measures[metric], own_words=own_words, pooled_text=pooled,
        )[0]  # fmt: skip

    def shares(self, model, groups: dict[str, list[Question]], **how) -> dict[str, float]:
        """By group, how much of what the model draws right before is still drawn. how: see `Studio.draw`."""
        return self.examiner.shares(self.model, model, groups, **how)

    def drawn_before(self) -> float:
        """The share of all its things that the model draws, as the judge names them."""
        everything = asked(self.words["concepts"], TEMPLATES[:1])
        return round(float(self.examiner.ask(self.model, everything, "base").right.mean()), 3)
