"""Fuse LoRAs: erasure LoRAs into the weights, in closed form (Section 3.3)."""

from comfy_api.latest import io

from ...mace.concepts.strengths import parse_strengths
from ..compared import MOST_SEED, compared_pictures, read_prompt
from ..schema import AUTO, ERASE, LorasType, PriorType, RefinementType, read_weight, side_inputs
from ..stages.erasing import sampling
from ..stages.fusion import CLOSED_FORM, NAIVE, TOWARDS, fused_model


class FuseLoras(io.ComfyNode):
    """Erasure LoRAs and refinement as patches on the original model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        weight = "A number, or auto for the refinement's."
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
                    options=[CLOSED_FORM, NAIVE],
                    default=CLOSED_FORM,
                    tooltip="Closed form: the paper's fusion. Naive: the weighted sum of the LoRAs, for comparison.",
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
                io.String.Input(
                    "lambda2",
                    default=AUTO,
                    tooltip=f"Weight of the prior's captions (lambda2 of Eq. 7, without unit). {weight} Larger keeps "
                    "more.",
                ),
                io.String.Input(
                    "lambda3",
                    default=AUTO,
                    tooltip=f"Weight of the concepts to preserve (lambda3, without unit). {weight} Larger keeps more.",
                ),
                io.String.Input(
                    "mu",
                    display_name="identity weight mu",
                    default=AUTO,
                    tooltip=f"Weight of staying near the weights named in pull (without unit). {weight}",
                ),
                io.Combo.Input(
                    "pull",
                    options=list(TOWARDS),
                    advanced=True,
                    tooltip="Where mu draws the weights to: the refined ones, as the published code does, or the "
                    "original ones, as Eq. 7 reads.",
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
                    placeholder="a photo of a dog in a park",
                    tooltip="A prompt of yours: the node shows what it draws before and after, with two seeds, so that "
                    "you see what a slider does. Needs clip and vae. Empty: no pictures.",
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
                *side_inputs("the preview's pictures", optional=True, advanced=True),
            ],
            outputs=[io.Model.Output("model", tooltip="The erased model: the original with patches on to_k and to_v.")],
            has_intermediate_output=True,
        )

    @classmethod
    def validate_inputs(cls, strengths=None, lambda2=None, lambda3=None, mu=None):
        try:
            parse_strengths(strengths or "")
            for name, text in (("lambda2", lambda2), ("lambda3", lambda3), ("mu", mu)):
                read_weight(name, AUTO if text is None else text)
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
        shown = read_prompt(preview_prompt)
        if shown and (clip is None or vae is None):
            raise ValueError("preview_prompt is drawn with clip and vae: connect both, or leave it empty")
        fused, lines, listed = fused_model(
            model, loras, refinement, prior, clip, method, strengths, (lambda2, lambda3, mu), pull
        )
        pictures = {}
        if shown:
            settings = {"width": width, "height": height, **sampling(model)}
            pictures = compared_pictures(cls, model, fused, clip, vae, shown, preview_seed, settings)
        # The concepts are for the page's sliders, which cannot know what a file of LoRAs holds.
        return io.NodeOutput(fused, ui={"text": ("\n".join(lines),), "concepts": listed, **pictures})
