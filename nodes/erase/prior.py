"""Prior: the moments of what is to be kept."""

import random
import weakref
from collections.abc import Sequence

import torch
from comfy.utils import ProgressBar
from comfy_api.latest import io, ui

from ...mace.concepts import captions as caption_sources
from ...mace.concepts.concept import TYPES, Concept, ConceptError, normalised, parse_concepts, phrases_by_key
from ...mace.concepts.lists import RETENTION
from ...mace.method.prior import Prior, make_prior
from ...mace.method.tokens import fill
from ..host import files
from ..host.text import TextEncoder, chunks
from ..schema import CATEGORY, ConceptsType, PriorType

BUILT_IN = "built-in"
MOST_CAPTIONS = 1_000_000
SHOWN = 8

# The last captions' moment by text encoder: another list of concepts leaves out other captions, and taking their
# part off the whole spares encoding thousands of captions again.
_last_general: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def draw_captions(source: str, count: int, seed: int) -> list[str]:
    """`count` captions of the built-in grammar, or as many of a file, drawn by seed where it holds more."""
    if count == 0:
        return []
    if source == BUILT_IN:
        return caption_sources.builtin_captions(count, seed)
    found = caption_sources.read_captions(files.input_path(source))
    return random.Random(seed).sample(found, count) if len(found) > count else found


def keepers(preserve: str, preserve_type: str, retention: str) -> list[Concept]:
    """The concepts to preserve, each phrase once: the paper's list, then the lines and their aliases.

    Raises ConceptError for a bad line.
    """
    kind, names = RETENTION.get(retention, (preserve_type, ()))
    phrases = {normalised(name): Concept(name, "", kind) for name in names}
    for line in parse_concepts(preserve, preserve_type, mapped=False):
        for phrase in line.phrases:
            phrases.setdefault(normalised(phrase), Concept(phrase, "", line.type))
    return list(phrases.values())


def literal(caption: str) -> str:
    """A caption as a prompt: its brackets are brackets and not weights."""
    return caption.replace("(", r"\(").replace(")", r"\)")


def general_moment(
    encoder: TextEncoder, drawn: Sequence[str], left_out: Sequence[str], origin: tuple, progress: ProgressBar
) -> torch.Tensor:
    """sum e e^T over the tokens of the captions drawn and not left out, [d, d] float64.

    origin: what the captions drawn depend on. They are summed once for it, and the left out taken off.
    """
    model, key = encoder.clip.cond_stage_model, (encoder.identity, origin)
    known_key, total = _last_general.get(model, (None, None))
    if known_key == key:
        progress.update(len(drawn))
    else:
        total = encoder.gram([literal(caption) for caption in drawn], progress.update)
        # On the CPU: the host does not manage what stays on the device between runs.
        total = total.cpu()
        _last_general[model] = (key, total)
    return total - encoder.gram([literal(caption) for caption in left_out], progress.update).cpu()


def report(prior: Prior, kept: Sequence[str], left_out: Sequence[str], too_long: int) -> str:
    """What went into the prior, for the node's preview."""
    lines = [f"{prior.captions} captions ({prior.source}), {len(left_out)} left out because they name a target"]
    if too_long:
        lines.append(f"{too_long} captions were too long for the text encoder and left out")
    lines += [f"  {caption}" for caption in kept[:SHOWN]]
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
                    tooltip="How many captions to draw; 0 for none. Their mean moment is scaled to COCO's 616,767 "
                    "captions, so lambda1 means the same for any count. The built-in grammar gives up to "
                    f"{caption_sources.MAX_CAPTIONS:,}.",
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
    def validate_inputs(cls, preserve=None):
        if preserve is None:  # linked: it is there only when the node runs
            return True
        try:
            parse_concepts(preserve, TYPES[0], mapped=False)
        except ConceptError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, captions=BUILT_IN, **_):
        return None if captions in (BUILT_IN, None) else files.file_stamp(captions)

    @classmethod
    def execute(cls, clip, captions, count, seed, preserve, preserve_type, retention, concepts=()) -> io.NodeOutput:
        erased = phrases_by_key(concepts)
        keep = keepers(preserve, preserve_type, retention)
        for concept in keep:
            if normalised(concept.target) in erased:
                raise ValueError(
                    f"{concept.target!r} is both to be erased and to be preserved; take it out of one list"
                )
        encoder = TextEncoder(clip)
        found = draw_captions(captions, count, seed)
        drawn = [caption for part in chunks(found) for caption in encoder.fitting(part, literal)]
        kept, left_out = caption_sources.leave_out(drawn, list(erased.values()))
        if not kept and not keep:
            raise ValueError("there is nothing to keep: no caption is left and no concept to preserve is named")
        prompts = [fill(template, concept.target) for concept in keep for template in concept.prompts]
        progress = ProgressBar(len(drawn) + len(left_out) + len(prompts))
        origin = (captions, files.file_stamp("" if captions == BUILT_IN else captions), count, seed)
        prior = make_prior(
            general_moment(encoder, drawn, left_out, origin, progress) if kept else None,
            len(kept),
            encoder.gram(prompts, progress.update) if prompts else None,
            tuple(concept.target for concept in keep),
            encoder.fingerprint,
            f"built-in, seed {seed}" if captions == BUILT_IN else captions,
            tuple(erased.values()),
        )
        return io.NodeOutput(prior, ui=ui.PreviewText(report(prior, kept, left_out, len(found) - len(drawn))))
