"""Fuse LoRAs: erasure LoRAs into the weights, in closed form (Section 3.3)."""

from comfy_api.latest import io

from ...mace.concepts.concept import preset_of
from ...mace.concepts.strengths import parse_strengths
from ...mace.pipeline.fusion import CLOSED_FORM, NAIVE, TOWARDS, fused_model, pull_name
from ...mace.pipeline.written import AUTO, is_auto, read_weight
from ..compared import compared_pictures, read_prompt
from ..host.pipeline import ModelWeights, text_of
from ..host.preset_files import find_preset, presets, weights_in_place_of_auto
from ..host.progress import NodeProgress
from ..schema import ERASE, MOST_SEED, LorasType, PriorType, RefinementType, number_input, side_inputs
from ..stages.erasing import sampling
from ..stages.keeping import written_weights
from ..stages.nearby import fused_lines


class FuseLoras(io.ComfyNode):
    """Erasure LoRAs and refinement as patches on the original model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        weight = "auto: by the settings chosen in Concepts, else the refinement's. A number without unit:"
        return io.Schema(
            node_id="MACE_FuseLoras",
            display_name="Fuse LoRAs (MACE)",
            category=ERASE,
            description="Puts all erasure LoRAs and the refinement into the original model in one closed-form solve, "
            "without their getting in each other's way. Another strength or weight is a new solve, not a new training.",
            search_aliases=["mace", "merge", "fusion", "strength", "erase", "unlearn"],
            inputs=[
                io.Model.Input("model", tooltip="The original model, from before CFR Refine."),
                LorasType.Input("loras", tooltip="From Train Erasure LoRA or Load Erasure LoRAs."),
                io.Combo.Input(
                    "method",
                    advanced=True,
                    options=[CLOSED_FORM, NAIVE],
                    default=CLOSED_FORM,
                    tooltip="Closed form: erases all concepts together without one undoing another (Eq. 7). Naive: the "
                    "weighted sum of the LoRAs (Eq. 6), for comparison.",
                ),
                io.String.Input(
                    "strengths",
                    multiline=True,
                    dynamic_prompts=False,
                    default="",
                    placeholder="dog = 0.5\n* = 1",
                    tooltip="Strength of single concepts, 0 to 1, one a line; 1 where nothing is said, * stands for "
                    "all others. At 0 a concept leaves the solve. All at 0 gives the original model to the bit.",
                ),
                number_input(
                    "lambda2",
                    usual=1e-4,
                    advanced=True,
                    tooltip=f"Larger keeps more of what the prior's captions show. {weight} lambda2 of Eq. 7.",
                ),
                number_input(
                    "lambda3",
                    usual=1.0,
                    advanced=True,
                    tooltip=f"Larger keeps more of the concepts to preserve. {weight} lambda3 of Eq. 7.",
                ),
                number_input(
                    "mu",
                    usual=0.1,
                    advanced=True,
                    display_name="identity weight mu",
                    tooltip=f"Larger keeps more of everything else as pull names it. {weight} the weight of staying "
                    "near those weights.",
                ),
                io.Combo.Input(
                    "pull",
                    options=[*TOWARDS, AUTO],
                    default=AUTO,
                    advanced=True,
                    tooltip="What mu keeps near: the refined weights, which stay erased, as in the published code, or "
                    "the original ones, as Eq. 7 reads, which gives more back. Prior too: lambda2 and lambda3 keep "
                    "what the refined weights make of the prior: they hold back the LoRAs and give nothing back. "
                    "auto: by the settings chosen in Concepts, else the first.",
                ),
                RefinementType.Input(
                    "refinement",
                    optional=True,
                    tooltip="From CFR Refine. Its list decides which concepts are fused. Without: what the LoRAs were "
                    "trained on.",
                ),
                PriorType.Input("prior", optional=True, tooltip="In place of the refinement's own prior."),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="The text encoder: for LoRAs from a file that was saved without moments, to take out of a "
                    "prior what names a concept of the list, and for preview_prompt.",
                ),
                io.Vae.Input("vae", optional=True, tooltip="Its VAE, for preview_prompt only."),
                io.String.Input(
                    "preview_prompt",
                    optional=True,
                    dynamic_prompts=False,
                    default="",
                    placeholder="a photo of a {} in a park",
                    tooltip="A prompt of yours: the node shows what it draws before and after, with two seeds, so that "
                    "you see what a slider does; {} stands for the first concept. Needs clip and vae. Empty: no "
                    "pictures.",
                ),
                io.Int.Input(
                    "preview_seed",
                    optional=True,
                    default=0,
                    min=0,
                    max=MOST_SEED,
                    control_after_generate=False,
                    advanced=True,
                    tooltip="Seed of the first picture of the preview; the second has the next.",
                ),
                *side_inputs("the preview's pictures", optional=True),
            ],
            outputs=[io.Model.Output("model", tooltip="The erased model: the original with patches on to_k and to_v.")],
            has_intermediate_output=True,
        )

    @classmethod
    def validate_inputs(cls, strengths=None, lambda2=None, lambda3=None, mu=None):
        try:
            parse_strengths(strengths or "")
            for name, text in (("lambda2", lambda2), ("lambda3", lambda3), ("mu", mu)):
                read_weight(name, text)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls,
        model,
        loras,
        method,
        strengths,
        lambda2,
        lambda3,
        mu,
        pull,
        refinement=None,
        prior=None,
        clip=None,
        vae=None,
        preview_prompt="",
        preview_seed=0,
        width=0,
        height=0,
    ) -> io.NodeOutput:
        concepts = (loras if refinement is None else refinement).concepts
        shown = read_prompt(preview_prompt, concepts)
        if shown and (clip is None or vae is None):
            raise ValueError("preview_prompt is drawn with clip and vae: connect both, or leave it empty")
        # What the LoRAs were trained on; neither is there for imported ones, which the fusion refuses.
        source = loras.recipe if refinement is None else refinement
        name = preset_of(concepts) if refinement is not None else source.preset if source is not None else ""
        weights, named = (lambda2, lambda3, mu), []
        # Weights that stand there need no preset, which may be another machine's; then pull is the first.
        preset = find_preset(name) if any(map(is_auto, weights)) else presets().get(name)
        usual = preset.fuse(len(concepts)) if name and preset is not None and preset.fuse is not None else None
        own = pull_name(usual)
        about = [f"auto: {name}"] if name else []
        if name and preset is None and is_auto(pull):
            about.append(f"pull: {own}, for there is no preset {name!r} here")
        pull = own if is_auto(pull) else pull
        if usual and pull != own:
            about.append(f"pull: {pull}, where the settings have {own}")
        if source is not None and method != NAIVE:
            weights, named = written_weights(weights, usual or source.weights, prior or source.prior)
        weights = weights_in_place_of_auto(weights, usual)
        given = (ModelWeights(model), None if clip is None else text_of(clip), NodeProgress())
        edited, lines, listed = fused_model(*given, loras, refinement, prior, method, strengths, weights, pull)
        fused = edited.model
        lines = [*about, *named, *lines]
        if clip is not None:
            lines += fused_lines(model, fused, clip, loras, refinement, prior, listed)
        pictures = {}
        if shown:
            settings = {"width": width, "height": height, **sampling(model)}
            pictures = compared_pictures(cls, model, fused, clip, vae, shown, preview_seed, settings)
        # The concepts are for the page's sliders, which cannot know what a file of LoRAs holds.
        return io.NodeOutput(fused, ui={"text": ("\n".join(lines),), "concepts": listed, **pictures})
