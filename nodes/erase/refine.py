"""CFR Refine: closed-form cross-attention refinement (Section 3.1)."""

from comfy_api.latest import io, ui

from ...mace.concepts.concept import preset_of
from ...mace.pipeline.refine import (
    EMBEDDINGS,
    MEASURE_NAMES,
    MEASURES,
    PAPER,
    RELEASED,
    choose_weights,
    refine_model,
    written_settings,
)
from ...mace.pipeline.written import AUTO, read_weight
from ...mace.presets.presets import Preset
from ..host.model.unet import PROJECTIONS
from ..host.pipeline import text_and_weights
from ..host.preset_files import find_preset, weights_in_place_of_auto
from ..host.progress import NodeProgress
from ..schema import ERASE, ConceptsType, PriorType, RefinementType, number_input
from ..stages.keeping import written_weights
from ..stages.nearby import moved_lines

OWN_WORDS = {AUTO: None, "on": True, "off": False}


def moves_own_words(choice: str, preset: Preset) -> bool | None:
    """Whether the concepts' own words are moved too; None: where no LoRA is trained. choice: of OWN_WORDS."""
    return preset.own_words if choice == AUTO else OWN_WORDS[choice]


class CFRRefine(io.ComfyNode):
    """Refines keys and values so that the words around a concept stop carrying it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        weight = "auto: by the settings chosen in Concepts; in Table 10"
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
                    tooltip="How far the refinement goes, for all concepts alike: 0 gives the input model to the bit, "
                    "1 the whole erasure, which is the paper's.",
                ),
                number_input(
                    "lambda1",
                    usual=1e-4,
                    advanced=True,
                    tooltip=f"Larger keeps more of what the prior's captions show, and erases less. {weight} 1e-4 for "
                    "people and styles, 7e-7 for explicit content, none for objects. A number without unit: lambda1 "
                    "of Eq. 1.",
                ),
                number_input(
                    "lambda3",
                    usual=1.0,
                    advanced=True,
                    tooltip=f"Larger keeps more of the concepts to preserve. {weight} 0.8 to 20 by the number of "
                    "people, 8 for styles, 0.3 for other names to preserve. A number without unit: lambda3 of Eq. 19.",
                ),
                number_input(
                    "mu",
                    usual=0.1,
                    display_name="identity weight mu",
                    tooltip="Larger keeps more of everything else, and erases less: the main control for objects. "
                    f"{weight} 0.1 to 1000 for the ten CIFAR classes, 10 for other objects, 0.1 for explicit content "
                    "(ours), 0 for people and styles. A number without unit: the weight of ||W' - W||^2 (Appendix "
                    "C.2).",
                ),
                io.Combo.Input(
                    "projections",
                    advanced=True,
                    options=list(PROJECTIONS),
                    default="both",
                    tooltip="What is changed of how the model reads its text: keys (to_k), values (to_v) or both, the "
                    "paper's choice. Models other than SD1.x, SD2.x and SDXL know both only.",
                ),
                io.Combo.Input(
                    "lambda1_form",
                    options=[PAPER, RELEASED, AUTO],
                    default=AUTO,
                    advanced=True,
                    tooltip="How much lambda1 keeps: as it stands (paper), or its square (1e-8 for 1e-4), since the "
                    "published code applies it twice. auto: by the settings chosen in Concepts, else paper. On the "
                    "demo model the fused result is the same.",
                ),
                io.Combo.Input(
                    "mu_measures",
                    options=[*MEASURES, AUTO],
                    default=AUTO,
                    optional=True,
                    advanced=True,
                    tooltip="What mu keeps near: the text embeddings, as the paper has it, or what the model's values "
                    "read of them (ours), which takes more of the synonyms and leaves more of the rest. Then raise "
                    "mu: 1e5 on the demo model. auto: by the settings chosen in Concepts, else embeddings. Fuse LoRAs "
                    "and focus follow.",
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
                    tooltip="On: what the whole prompt carries of the concept goes too, on models that read the "
                    "prompt a second time as one pooled vector (SDXL, FLUX.1, SD3 and their kin), by the same closed "
                    "form (ours; the paper's models have none). No effect on others.",
                ),
                io.Combo.Input(
                    "own_words",
                    options=list(OWN_WORDS),
                    optional=True,
                    advanced=True,
                    tooltip="On: the concept's own words are erased here too, each to the last word of its mapping "
                    "(ours); the paper leaves them to the erasure LoRA. auto: off for SD1.x, SD2.x and SDXL, where "
                    "one is trained, unless the settings chosen in Concepts train none; on for all other models.",
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
                read_weight(name, text)
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
        mu_measures=AUTO,
        pooled_text=True,
        own_words=AUTO,
    ) -> io.NodeOutput:
        name = preset_of(concepts)
        preset = find_preset(name)
        own = preset.own_weights(concepts)
        if lambda1_form == AUTO:
            # A preset's own weights are squared as they are written, Table 10's by the form.
            own = own and preset.weights(concepts)
            lambda1_form = RELEASED if preset.lambda1_squared and own is None else PAPER
        if mu_measures == AUTO:
            mu_measures = MEASURE_NAMES[own.metric] if own else EMBEDDINGS
        given, named = written_weights((lambda1, lambda3, mu), preset.weights(concepts), prior)
        weights, lines = choose_weights(concepts, *weights_in_place_of_auto(given, own), lambda1_form, mu_measures)
        lines = [*([f"auto: {name}"] if name else []), *named, *lines]
        # As Erase Concepts writes them, so that both find the LoRAs that one of them trained.
        forms = preset.refine_forms if own else None
        settings = written_settings(*weights_in_place_of_auto(given, forms), lambda1_form, mu_measures)
        text, original = text_and_weights(model, clip)
        how = (strength, projections, settings, pooled_text, moves_own_words(own_words, preset))
        refined, result, about = refine_model(original, text, NodeProgress(), concepts, weights, prior, *how)
        lines += about
        if strength:
            lines += moved_lines(model, refined.model, clip, concepts, result.prior)
        return io.NodeOutput(refined.model, result, ui=ui.PreviewText("\n".join(lines)))
