"""CFR Refine: closed-form cross-attention refinement (Section 3.1)."""

from comfy_api.latest import io, ui

from ..host.model.unet import PROJECTIONS, is_unet
from ..schema import AUTO, ERASE, ConceptsType, PriorType, RefinementType, read_weight
from ..stages.nearby import moved_lines
from ..stages.refine import EMBEDDINGS, MEASURES, PAPER, RELEASED, choose_weights, refine_model, written_settings

OWN_WORDS = {AUTO: None, "on": True, "off": False}


class CFRRefine(io.ComfyNode):
    """Refines keys and values so that the words around a concept stop carrying it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        weight = "A number, or auto for Table 10's value by type."
        return io.Schema(
            node_id="MACE_CFRRefine",
            display_name="CFR Refine (MACE)",
            category=ERASE,
            description="Closed-form refinement: the words around a concept (and the end of the prompt) stop carrying "
            "it. On Stable Diffusion its own words are left to the erasure LoRA; on models for which none is trained "
            "(FLUX, SD3, Qwen-Image and others) they are moved too. Adds patches, touches no weight.",
            search_aliases=["mace", "erase", "unlearn", "closed form", "refinement", "uce", "concept erasure"],
            inputs=[
                io.Model.Input("model", tooltip="The model to erase from. LoRAs and merges before this node count."),
                io.Clip.Input("clip", tooltip="Its text encoder; a clip skip set before this node counts."),
                ConceptsType.Input("concepts", tooltip="What to erase, from Concepts."),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    display_mode=io.NumberDisplay.slider,
                    tooltip="How far the refinement goes, for all concepts alike: 1 is the paper's, 0 gives the input "
                    "model to the bit.",
                ),
                io.String.Input(
                    "lambda1",
                    default=AUTO,
                    tooltip=f"Weight of the prior's captions (lambda1 of Eq. 1, without unit). {weight} 1e-4 for "
                    "people and styles, 7e-7 for explicit content, none for objects. Larger keeps more.",
                ),
                io.String.Input(
                    "lambda3",
                    default=AUTO,
                    tooltip=f"Weight of the concepts to preserve (lambda3 of Eq. 19, without unit). {weight} 0.8 to 20 "
                    "by the number of people, 8 for styles, none for objects. Larger keeps more.",
                ),
                io.String.Input(
                    "mu",
                    display_name="identity weight mu",
                    default=AUTO,
                    tooltip=f"Weight of ||W' - W||^2 (Appendix C.2, without unit). {weight} 0.1 to 1000 for the ten "
                    "CIFAR classes, 10 for other objects, 0.1 for explicit content, 0 for people and styles. Larger "
                    "keeps more.",
                ),
                io.Combo.Input(
                    "projections",
                    options=list(PROJECTIONS),
                    default="both",
                    tooltip="Refine keys (to_k), values (to_v) or both, the paper's choice. Models other than SD1.x, "
                    "SD2.x and SDXL know both only.",
                ),
                io.Combo.Input(
                    "lambda1_form",
                    options=[PAPER, RELEASED],
                    default=PAPER,
                    advanced=True,
                    tooltip="The published code applies lambda1 twice, which makes it its square (1e-8 for 1e-4). "
                    "On the demo model the fused result is the same.",
                ),
                io.Combo.Input(
                    "mu_measures",
                    options=list(MEASURES),
                    optional=True,
                    advanced=True,
                    tooltip="What mu measures a change in: the text embeddings, as the paper has it, or what the "
                    "model's values read of them (ours), which takes more of the synonyms and leaves more of the "
                    "rest. Then raise mu: 1e5 on the demo model. Fuse LoRAs and focus follow.",
                ),
                PriorType.Input(
                    "prior",
                    optional=True,
                    tooltip="What to keep, from Prior or Load Prior. Needed for people and styles with automatic "
                    "settings, and wise for explicit content.",
                ),
                io.Boolean.Input(
                    "pooled_text",
                    optional=True,
                    default=True,
                    advanced=True,
                    tooltip="SDXL, FLUX.1, SD3 and their kin read the prompt a second time, as one pooled vector that "
                    "carries the concept too. On: that reading is refined by the same closed form (ours; the paper's "
                    "models have none). No effect on models without one.",
                ),
                io.Combo.Input(
                    "own_words",
                    options=list(OWN_WORDS),
                    optional=True,
                    advanced=True,
                    tooltip="The concept's own words too, each to the last word of its mapping (ours); the paper leaves"
                    " them to the erasure LoRA. auto: off for SD1.x, SD2.x and SDXL, where one is trained, and on for "
                    "all other models.",
                ),
            ],
            outputs=[
                io.Model.Output("model", tooltip="The refined model: the input with patches where it reads its text."),
                RefinementType.Output("refinement", tooltip="Transform and moments, for the later stages."),
            ],
            has_intermediate_output=True,
        )

    @classmethod
    def validate_inputs(cls, lambda1=None, lambda3=None, mu=None):
        for name, text in (("lambda1", lambda1), ("lambda3", lambda3), ("mu", mu)):
            try:
                # A linked value is there only when the node runs.
                read_weight(name, AUTO if text is None else text)
            except ValueError as error:
                return str(error)
        return True

    @classmethod
    def execute(
        cls,
        model,
        clip,
        concepts,
        strength,
        lambda1,
        lambda3,
        mu,
        projections,
        lambda1_form,
        prior=None,
        mu_measures=EMBEDDINGS,
        pooled_text=True,
        own_words=AUTO,
    ) -> io.NodeOutput:
        weights, lines = choose_weights(concepts, lambda1, lambda3, mu, lambda1_form, mu_measures)
        settings = written_settings(lambda1, lambda3, mu, lambda1_form, mu_measures)
        refined, result, about = refine_model(
            model, clip, concepts, weights, prior, strength, projections, settings, pooled_text, OWN_WORDS[own_words]
        )
        lines += about
        if strength and is_unet(model):
            lines += moved_lines(model, refined, clip, concepts, result.prior)
        return io.NodeOutput(refined, result, ui=ui.PreviewText("\n".join(lines)))
