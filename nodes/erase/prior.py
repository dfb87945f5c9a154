"""Prior: the moments of what is to be kept."""

from collections.abc import Sequence

from comfy_api.latest import io, ui

from ...mace.concepts.captions import MAX_CAPTIONS
from ...mace.concepts.concept import TYPES, parse_concepts
from ...mace.concepts.lists import RETENTION
from ...mace.concepts.text import TextError
from ...mace.method.prior import Prior
from ...mace.pipeline.prior import BUILT_IN, SHOWN, Drawn, build_prior, keepers
from ..host import files
from ..host.pipeline import captions_of, text_of
from ..host.progress import NodeProgress
from ..schema import ERASE, ConceptsType, PriorType, seed_input
from ..stages.captions import FEWEST, USUAL, in_time, measured, with_kept

MOST_CAPTIONS = 1_000_000
# As a count: as many as the device reads in time.
AUTO_COUNT = -1


def report(prior: Prior, drawn: Drawn, read: Sequence[str]) -> str:
    """What went into the prior, for the node's preview. read: lines on how many captions were read."""
    lines = [
        *read,
        f"{prior.captions} captions ({prior.source}), {len(drawn.left_out)} left out because they name a target",
    ]
    if drawn.too_long:
        lines.append(f"{drawn.too_long} captions were too long for the text encoder and left out")
    lines += [f"  {caption}" for caption in drawn.kept[:SHOWN]]
    lines += [f"  left out: {caption}" for caption in drawn.left_out[:SHOWN]]
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
            category=ERASE,
            description="What the erased model is to keep: everyday captions, and concepts you name. Takes seconds on "
            "a GPU and up to ten minutes on a CPU, or as long as a count of your own and what you name take; the node "
            "says it first. Save Prior keeps the result for other lists of concepts.",
            search_aliases=["preserve", "retain", "mace", "coco", "captions", "regularization"],
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder of the model to erase from, clip skip included."),
                io.Combo.Input(
                    "captions",
                    options=[BUILT_IN, *files.input_files(".txt", ".json")],
                    default=BUILT_IN,
                    tooltip="Keeps what everyday prompts draw: general captions of a built-in grammar, or of a text "
                    "file (one a line) or a COCO annotations .json of the input folder. The prior of lambda1, P in "
                    "Eq. 19.",
                ),
                io.Int.Input(
                    "count",
                    default=AUTO_COUNT,
                    min=AUTO_COUNT,
                    max=MOST_CAPTIONS,
                    tooltip=f"Fewer are quicker. -1: {USUAL}, and on a CPU that would take longer than ten minutes "
                    f"fewer, down to {FEWEST}; 0: none; any other number is read whatever it takes. How many captions "
                    "to draw: their mean moment is scaled to COCO's 616,767 captions, so lambda1 means the same for "
                    f"any count. The built-in grammar gives up to {MAX_CAPTIONS:,}.",
                ),
                seed_input("Which captions the grammar makes, or which ones of a longer file are drawn.", 2**32 - 1),
                io.String.Input(
                    "preserve",
                    multiline=True,
                    dynamic_prompts=False,
                    default="",
                    placeholder="concepts to preserve, one a line",
                    tooltip="Keeps these concepts as they are, one a line; aliases after | are preserved too. Text "
                    "after # is a comment. They are D in Eq. 19, weighed by lambda3.",
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
                    tooltip="Keeps 100 people or artists beside what the lines name: the paper's lists (Tables 7 and "
                    "9). They are read in 3600 prompts, which takes about as long as so many captions.",
                ),
                ConceptsType.Input(
                    "concepts",
                    optional=True,
                    tooltip="The concepts to erase: captions that name a target or an alias are left out at once. "
                    "Without, CFR Refine and Fuse LoRAs take them out for each list.",
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="The model to erase from. Needed where it is no SD1.x, SD2.x or SDXL: what is kept is read "
                    "where the model reads it.",
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
            parse_concepts(preserve, TYPES[0], mapped=False, field="preserve")
        except TextError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, captions=BUILT_IN, **_):
        return None if captions in (BUILT_IN, None) else files.file_stamp(captions)

    @classmethod
    def execute(
        cls, clip, captions, count, seed, preserve, preserve_type, retention, concepts=(), model=None
    ) -> io.NodeOutput:
        keep = keepers(preserve, preserve_type, retention, concepts)
        text = text_of(clip, model)
        if count == AUTO_COUNT:
            reading = in_time(text, clip, captions_of(captions, USUAL, seed))
        else:
            reading = measured(text, clip, captions_of(captions, count, seed))
        with_kept(reading, text, clip, sum(len(concept.prompts) for concept in keep)).say()
        prior, drawn = build_prior(text, NodeProgress(), reading.source, keep, concepts)
        return io.NodeOutput(prior, ui=ui.PreviewText(report(prior, drawn, reading.lines)))
