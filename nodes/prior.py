"""Prior: the moments of what is to be kept."""

import random

import torch
from comfy.utils import ProgressBar
from comfy_api.latest import io, ui

from ..mace import captions as caption_sources
from ..mace.concept import TYPES, Concept, normalised, parse_concepts
from ..mace.lists import RETENTION
from ..mace.prior import Prior, make_prior
from ..mace.tokens import fill
from . import files
from .text import TextEncoder
from .types import CATEGORY, ConceptsType, PriorType

BUILT_IN = "built-in"
MOST_CAPTIONS = 1_000_000
MOST_BUILT_IN = caption_sources.MAX_CAPTIONS
SHOWN = 8


def choose_captions(source: str, count: int, seed: int, phrases: list[str]) -> tuple[list[str], list[str]]:
    """(captions, left out): at most `count` captions that name none of the phrases, drawn by seed."""
    if count == 0:
        return [], []
    if source == BUILT_IN:
        found = caption_sources.builtin_captions(min(count, MOST_BUILT_IN), seed)
        return caption_sources.leave_out(found, phrases)
    kept, left_out = caption_sources.leave_out(caption_sources.read_captions(files.input_path(source)), phrases)
    if len(kept) > count:
        kept = random.Random(seed).sample(kept, count)
    return kept, left_out


def keepers(preserve: str, preserve_type: str, retention: str) -> list[Concept]:
    """The concepts to preserve: the paper's list, then the lines. Raises ConceptError for a bad line."""
    kind, names = RETENTION.get(retention, (preserve_type, ()))
    chosen = [Concept(name, "", kind) for name in names]
    known = {normalised(concept.target) for concept in chosen}
    lines = parse_concepts(preserve, preserve_type, mapped=False)
    return chosen + [concept for concept in lines if normalised(concept.target) not in known]


def report(prior: Prior, captions: list[str], left_out: list[str]) -> str:
    """What went into the prior, for the node's preview."""
    lines = [f"{prior.captions} captions ({prior.source}), {len(left_out)} left out because they name a target"]
    lines += [f"  {caption}" for caption in captions[:SHOWN]]
    lines += [f"  left out: {caption}" for caption in left_out[:SHOWN]]
    lines.append(f"{len(prior.preserved)} concepts to preserve")
    if prior.preserved:
        lines.append("  " + ", ".join(prior.preserved))
    return "\n".join(lines)


class BuildPrior(io.ComfyNode):
    """Moments of general captions (P) and of the concepts to preserve (D)."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MACE_Prior",
            display_name="Prior (MACE)",
            category=CATEGORY,
            description="What the erased model is to keep: everyday captions, and concepts you name. Takes minutes on "
            "a CPU and seconds on a GPU; Save Prior keeps the result for other lists of concepts.",
            search_aliases=["preserve", "retain", "mace", "coco", "captions", "regularization"],
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder of the model to erase from, clip skip included."),
                io.Combo.Input(
                    "captions",
                    options=[BUILT_IN, *files.input_files(".txt", ".json")],
                    default=BUILT_IN,
                    tooltip="General captions (the prior of lambda1, P in Eq. 19): a built-in grammar of everyday "
                    "captions, or a text file (one a line) or a COCO annotations .json of the input folder.",
                ),
                io.Int.Input(
                    "count",
                    default=4000,
                    min=0,
                    max=MOST_CAPTIONS,
                    tooltip="How many captions at most; 0 for none. Their mean moment is scaled to COCO's 616,767 "
                    f"captions, so lambda1 means the same for any count. The built-in grammar gives up to "
                    f"{MOST_BUILT_IN:,}.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**32 - 1,
                    control_after_generate=False,
                    tooltip="Which captions the grammar makes, or which ones of a longer file are drawn.",
                ),
                io.String.Input(
                    "preserve",
                    multiline=True,
                    dynamic_prompts=False,
                    default="",
                    placeholder="concepts to preserve, one a line",
                    tooltip="Concepts to preserve (D in Eq. 19, weighed by lambda3), one a line; aliases after | are "
                    "preserved too. Text after # is a comment.",
                ),
                io.Combo.Input(
                    "preserve_type",
                    options=list(TYPES),
                    default="object",
                    tooltip="What the lines to preserve are; it selects the prompts they are read in.",
                ),
                io.Combo.Input(
                    "retention",
                    options=[files.NONE, *RETENTION],
                    default=files.NONE,
                    tooltip="The paper's lists of concepts to keep (Tables 7 and 9), added to the lines.",
                ),
                ConceptsType.Input(
                    "concepts",
                    optional=True,
                    tooltip="The concepts to erase: captions that name a target or an alias are left out.",
                ),
            ],
            outputs=[PriorType.Output("prior", tooltip="The moments, for CFR Refine and Save Prior.")],
            has_intermediate_output=True,
        )

    @classmethod
    def validate_inputs(cls, captions=BUILT_IN, preserve="", preserve_type="object", retention=files.NONE):
        if preserve_type not in TYPES:
            return f"preserve_type: {preserve_type!r} is not one of {', '.join(TYPES)}"
        if retention != files.NONE and retention not in RETENTION:
            return f"retention: {retention!r} is not one of the paper's lists"
        try:
            keepers(preserve, preserve_type, retention)
            if captions != BUILT_IN:
                caption_sources.read_captions(files.input_path(captions))
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, captions=BUILT_IN, **_):
        return None if captions == BUILT_IN else files.file_stamp(captions)

    @classmethod
    def execute(
        cls, clip, captions, count, seed, preserve, preserve_type, retention, concepts=()
    ) -> io.NodeOutput:
        erased = {normalised(phrase): phrase for concept in concepts for phrase in concept.phrases}
        kept = keepers(preserve, preserve_type, retention)
        for phrase in (phrase for concept in kept for phrase in concept.phrases):
            if normalised(phrase) in erased:
                raise ValueError(f"{phrase!r} is both to be erased and to be preserved; take it out of one list")
        chosen, left_out = choose_captions(captions, count, seed, list(erased.values()))
        if not chosen and not kept:
            raise ValueError("there is nothing to keep: no caption is left and no concept to preserve is named")
        prompts = [fill(t, phrase) for c in kept for phrase in c.phrases for t in c.prompts]
        encoder = TextEncoder(clip)
        fingerprint = encoder.fingerprint()
        progress = ProgressBar(len(chosen) + len(prompts))
        width = fingerprint.shape[-1]
        general: torch.Tensor | None = encoder.gram(chosen, width, progress.update) if chosen else None
        domain = encoder.gram(prompts, width, progress.update) if prompts else None
        names = tuple(phrase for concept in kept for phrase in concept.phrases)
        source = f"built-in, seed {seed}" if captions == BUILT_IN else captions
        prior = make_prior(general, len(chosen), domain, names, fingerprint, source)
        return io.NodeOutput(prior, ui=ui.PreviewText(report(prior, chosen, left_out)))
