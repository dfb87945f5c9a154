"""Erase Concepts: the whole of MACE in one node."""

from collections.abc import Sequence
from dataclasses import astuple

from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ...mace.concepts.concept import Concept
from ...mace.concepts.strengths import parse_strengths, strengths_of
from ...mace.method.prior import Prior
from ...mace.method.refine import ALIKE
from ...mace.presets.presets import PRESETS
from ...mace.presets.table10 import auto_weights
from ..host.model.family import usual_guidance
from ..host.model.unet import is_unet
from ..host.progress import send_text
from ..schema import AUTO, CATEGORY, ConceptsType, LorasType, PriorType, side_inputs
from ..stages.alias_search import AliasSettings
from ..stages.alias_search import find_aliases as search_aliases
from ..stages.fusion import CLOSED_FORM, TOWARDS, check_base, fused_model
from ..stages.images import make_images
from ..stages.mask_making import ATTENTION, make_masks
from ..stages.prior import BUILT_IN, build_prior
from ..stages.refine import MEASURE_NAMES, PAPER, choose_weights, refine_model, written_settings
from ..stages.train import train_loras
from ..stages.train_options import TrainOptions

# The host's usual sampling, as its own txt2img template has it.
SAMPLING = {"steps": 20, "cfg": 7.0, "sampler_name": "euler", "scheduler": "normal"}
IMAGES, CAPTIONS = 8, 4000


def refine_as_preset(
    model,
    clip,
    concepts: tuple[Concept, ...],
    preset: str,
    prior: Prior | None,
    strengths: Sequence[float] | None = None,
):
    """(refined MODEL, Refinement, lines for the artist, the prior it was refined with) with a preset's weights.

    prior: where None, built-in captions are read if the weights need them.  strengths: see `refine_model`.
    """
    chosen = PRESETS[preset]
    own = None if chosen.refine is None else chosen.refine(len(concepts))
    if prior is None and (own or auto_weights(concepts)).lambda1:
        send_text("reading captions for the prior")
        prior, _ = build_prior(clip, BUILT_IN, CAPTIONS, 0, concepts=concepts, model=model)
    send_text("refining")
    # As text, so that auto stays auto in what the LoRAs are kept by, whatever it takes for this list.
    written = (AUTO,) * 3 if own is None else tuple(map(repr, astuple(own)[:3]))
    measures = MEASURE_NAMES[own.metric if own else ALIKE]
    weights, lines = choose_weights(concepts, *written, PAPER, measures)
    settings = written_settings(*written, PAPER, measures)
    refined, refinement, about = refine_model(
        model, clip, concepts, weights, prior, settings=settings, strengths=strengths
    )
    return refined, refinement, [*lines, *about], refinement.prior


def by_closed_form(
    model,
    clip,
    vae,
    concepts: tuple[Concept, ...],
    preset: str,
    strengths: list[float],
    prior: Prior | None,
    drawing: dict,
) -> io.NodeOutput:
    """Erasing from a model for which no LoRA is trained: the refinement is all, and moves the concepts' own words.

    drawing: width, height and seed of the pictures that aliases are found by, {} where none are looked for.
    """
    lines = ["No LoRA is trained for this model: the refinement is all, and moves the concepts' own words too."]
    if drawing:
        check_vae(vae)
        send_text("drawing pictures to find aliases by")
        settings = {"count": AliasSettings().pictures, **SAMPLING, "cfg": usual_guidance(model), **drawing}
        images = make_images(model, clip, vae, concepts, AUTO, "", settings)
        found = search_aliases(model, clip, images, AliasSettings())
        concepts = found.concepts
        lines += ["Aliases:", *found.lines]
    listed = [[concept.target, strength] for concept, strength in zip(concepts, strengths, strict=True)]
    erased = model.clone()
    if any(strengths):
        own = strengths if min(strengths) < 1 else None
        erased, _, about, _ = refine_as_preset(model, clip, concepts, preset, prior, own)
        lines += ["Refinement:", *about]
    else:
        lines.append("All strengths are 0: the model is as it was.")
    # What stands behind the loras output has nothing to do.
    nothing = ExecutionBlocker(None)
    return io.NodeOutput(erased, nothing, ui={"text": ("\n".join(lines),), "concepts": listed})


def check_vae(vae) -> None:
    """Raise ValueError without a VAE."""
    if vae is None:
        raise ValueError("the vae input is empty: this checkpoint has none; connect Load VAE")


class EraseConcepts(io.ComfyNode):
    """Images, masks, refinement, training and fusion, one after the other, with a preset's settings."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MACE_EraseConcepts",
            display_name="Erase Concepts (MACE)",
            category=CATEGORY,
            description="The whole of MACE in one node: draws training images, finds the concepts in them, refines, "
            "trains an erasure LoRA for each and fuses them. Models for which no LoRA is trained (FLUX, SD3, "
            "Qwen-Image and others) are erased from in closed form alone. The single nodes offer every setting.",
            search_aliases=["mace", "erase", "unlearn", "remove concept", "forget", "censor", "nsfw"],
            inputs=[
                io.Model.Input("model", tooltip="The model to erase from."),
                io.Clip.Input("clip", tooltip="Its text encoder."),
                io.Vae.Input("vae", tooltip="Its VAE."),
                ConceptsType.Input("concepts", tooltip="What to erase, from Concepts; types may be mixed."),
                io.Combo.Input(
                    "preset",
                    options=list(PRESETS),
                    tooltip="All settings by type: the paper's Table 10, or those found for a small demo model, which "
                    "are for that model only.",
                ),
                *side_inputs("the training images"),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**63 - 1,
                    control_after_generate=False,
                    tooltip="Seed of images and training.",
                ),
                io.String.Input(
                    "strengths",
                    multiline=True,
                    dynamic_prompts=False,
                    default="",
                    placeholder="dog = 0.5\n* = 1",
                    tooltip="Strength of single concepts, 0 to 1, one a line; 1 where nothing is said. A change of "
                    "strengths trains nothing again.",
                ),
                PriorType.Input(
                    "prior",
                    optional=True,
                    tooltip="What to keep, from Prior or Load Prior. Without: built-in captions, read where the "
                    "settings need them (minutes on a CPU, seconds on a GPU; kept for the next run).",
                ),
                io.Boolean.Input(
                    "find_aliases",
                    optional=True,
                    default=False,
                    tooltip="Ask the model which other words draw the same things (stag for deer), and erase them too, "
                    "as Find Aliases does with its defaults. What it found stands on the node.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    "model", tooltip="The erased model: the original with patches where it reads its text."
                ),
                LorasType.Output("loras", tooltip="The erasure LoRAs, to save or to fuse with other strengths."),
            ],
            has_intermediate_output=True,
        )

    @classmethod
    def validate_inputs(cls, strengths=None):
        try:
            parse_strengths(strengths or "")
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls,
        model,
        clip,
        vae,
        concepts,
        preset,
        width,
        height,
        seed,
        strengths,
        prior=None,
        find_aliases=False,
    ) -> io.NodeOutput:
        check_base(model)
        own_strengths = strengths_of(strengths, concepts)
        if not is_unet(model):
            drawing = dict(width=width, height=height, seed=seed) if find_aliases else {}
            return by_closed_form(model, clip, vae, concepts, preset, own_strengths, prior, drawing)
        check_vae(vae)
        send_text("drawing training images")
        settings = {"count": IMAGES, "width": width, "height": height, "seed": seed, **SAMPLING}
        images = make_images(model, clip, vae, concepts, AUTO, "", settings)
        about: dict[str, Sequence[str]] = {}
        if find_aliases:
            found = search_aliases(model, clip, images, AliasSettings())
            images, concepts, about["Aliases"] = found.images, found.concepts, found.lines
        chosen = PRESETS[preset]
        fuse_as = (AUTO,) * 3 if chosen.fuse is None else tuple(map(repr, astuple(chosen.fuse(len(concepts)))[:3]))
        refined, refinement, about["Refinement"], prior = refine_as_preset(model, clip, concepts, preset, prior)
        send_text("finding the concepts in the images")
        masks, about_masks, _ = make_masks(model, clip, images, ATTENTION)
        options = TrainOptions(
            form=chosen.loss,
            end_of_text=chosen.end_of_text,
            focus=chosen.focus,
            seed=seed,
            by_type=chosen.lora,
        )
        loras, about_training = train_loras(refined, clip, images, masks, options)
        fused, about_fusion, listed = fused_model(
            model, loras, refinement, prior, clip, CLOSED_FORM, strengths, fuse_as, next(iter(TOWARDS))
        )
        about |= {"Masks": about_masks, "Training": about_training, "Fusion": about_fusion}
        lines = [line for name, part in about.items() for line in (f"{name}:", *part)]
        # The concepts are for the page's sliders, which cannot know what a preset holds.
        return io.NodeOutput(fused, loras, ui={"text": ("\n".join(lines),), "concepts": listed})
