"""Erase Concepts: the whole of MACE in one node."""

from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ...mace.concepts.concept import (
    TYPES,
    ConceptError,
    ConceptList,
    comma_lines,
    lines_error,
    merge,
    parse_concepts,
    preset_of,
)
from ...mace.concepts.strengths import parse_strengths
from ...mace.presets.presets import PAPER
from ..compared import compared_pictures, read_prompt
from ..host.model.family import sized
from ..host.preset_files import find_preset, preset_stamp, presets
from ..schema import ERASE, ConceptsType, LorasType, PriorType, seed_input, side_inputs
from ..stages.erasing import Wanted, check_vae, erase, sampling


class EraseConcepts(io.ComfyNode):
    """Images, masks, refinement, training and fusion, one after the other, with a preset's settings."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MACE_EraseConcepts",
            display_name="Erase Concepts (MACE)",
            category=ERASE,
            description="The whole of MACE in one node: write what is to go, and out comes a model without it. Draws "
            "training images, finds the concepts in them, refines, trains an erasure LoRA for each and fuses them. "
            "Models for which no LoRA is trained (FLUX, SD3, Qwen-Image and others) are erased from in closed form "
            "alone. The single nodes offer every setting.",
            search_aliases=["mace", "erase", "unlearn", "remove concept", "forget", "censor", "nsfw"],
            inputs=[
                io.Model.Input("model", tooltip="The model to erase from."),
                io.Clip.Input("clip", tooltip="Its text encoder."),
                io.Vae.Input("vae", tooltip="Its VAE."),
                ConceptsType.Input(
                    "concepts",
                    optional=True,
                    tooltip="What to erase, from Concepts; types may be mixed. What stands in words comes after it.",
                ),
                io.Combo.Input(
                    "preset",
                    options=list(presets()),
                    tooltip="How strongly is erased and what is kept, in one choice: the paper's Table 10 by type, the "
                    "same with what the published code does otherwise, settings found for other models, which are for "
                    "these only, or yours (Save Preset). It goes before what was chosen in Concepts.",
                ),
                *side_inputs("the training images"),
                seed_input("Seed of images and training."),
                io.String.Input(
                    "strengths",
                    multiline=True,
                    dynamic_prompts=False,
                    default="",
                    placeholder="dog = 0.5\n* = 1",
                    advanced=True,
                    tooltip="Strength of single concepts, 0 to 1, one a line; 1 where nothing is said. A change of "
                    "strengths trains nothing again.",
                ),
                PriorType.Input(
                    "prior",
                    optional=True,
                    tooltip="What to keep, from Prior or Load Prior. Without: 4000 built-in captions, read where the "
                    "settings need them (for people, styles and explicit content: seconds on a GPU; a CPU that would "
                    "take longer than ten minutes reads fewer; the node says so first, and keeps them for the next "
                    "run).",
                ),
                io.Boolean.Input(
                    "find_aliases",
                    optional=True,
                    default=False,
                    tooltip="Ask the model which other words draw the same things (stag for deer), and erase them too, "
                    "as Find Aliases does with its defaults. What it found stands on the node.",
                ),
                io.String.Input(
                    "words",
                    optional=True,
                    multiline=True,
                    dynamic_prompts=False,
                    default="",
                    placeholder="dog\nairplane -> sky\ncat | kitty, feline",
                    tooltip="What to erase, one a line, as in Concepts: a word alone, target -> mapping, or target | "
                    "alias, alias -> mapping. No other node is needed for it.",
                ),
                io.Combo.Input(
                    "type",
                    optional=True,
                    options=list(TYPES),
                    default="object",
                    tooltip="Selects the prompts that the words are read in and the automatic settings: what the lines "
                    "are that say no type of their own, as [style] in front of a line does.",
                ),
                io.Float.Input(
                    "gentle_strong",
                    display_name="gentle - strong",
                    optional=True,
                    default=0.0,
                    min=-1.0,
                    max=1.0,
                    step=0.05,
                    display_mode=io.NumberDisplay.slider,
                    tooltip="To the left more of everything else stays as it was, to the right less is left of what is "
                    "erased; 0 is the preset. A change trains nothing again. It multiplies the weights of what is "
                    "kept (lambda1, lambda3 and mu of the refinement, lambda2, lambda3 and mu of the fusion) by "
                    "100 at -1 and divides them by 100 at 1.",
                ),
                io.String.Input(
                    "preview_prompt",
                    optional=True,
                    dynamic_prompts=False,
                    default="",
                    placeholder="a photo of a {} in a park",
                    tooltip="A prompt of yours: the node shows what it draws before and after, with two seeds; {} "
                    "stands for the first word. Empty: no pictures.",
                ),
                io.Boolean.Input(
                    "keep_near",
                    optional=True,
                    default=False,
                    tooltip="Keeps the words next to what is erased that draw something else (wolf, hot dog for dog), "
                    "and the paper's lists of people or artists where such are erased: you name none. It asks what "
                    "find_aliases asks, once for both, and reads about 40 prompts for each name that is kept, 3600 for "
                    "each of these lists; the node says how long first. They are D of Eq. 19.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    "model", tooltip="The erased model: the original with patches where it reads its text."
                ),
                LorasType.Output("loras", tooltip="The erasure LoRAs, to save or to fuse with other strengths."),
                io.Int.Output("width", tooltip="Width of the pictures in pixels, for Empty Latent Image."),
                io.Int.Output("height", tooltip="Height of the pictures in pixels, for Empty Latent Image."),
                io.String.Output(
                    "prompt", tooltip="preview_prompt with its word, or the first word alone, to be encoded."
                ),
            ],
            has_intermediate_output=True,
        )

    @classmethod
    def validate_inputs(cls, strengths=None, words=None):
        try:
            parse_strengths(strengths or "")
        except ValueError as error:
            return str(error)
        # What is wrong under one type alone shows when the node runs: were type asked for here, the host would mark it
        # too.
        return lines_error(words or "", "words") or True

    @classmethod
    def fingerprint_inputs(cls, preset=PAPER, **_):
        return preset_stamp(preset)

    @classmethod
    def execute(
        cls,
        model,
        clip,
        vae,
        preset,
        width,
        height,
        seed,
        strengths,
        concepts=None,
        prior=None,
        find_aliases=False,
        words="",
        type="object",
        gentle_strong=0.0,
        preview_prompt="",
        keep_near=False,
    ) -> io.NodeOutput:
        chosen = merge(concepts or (), parse_concepts(words, type, field="words"))
        if not chosen:
            raise ConceptError("there is nothing to erase: write a word into words, such as dog, or connect Concepts")
        notes, theirs = [f"words: {said}" for said in comma_lines(words, "words")], preset_of(chosen)
        if theirs not in ("", preset):
            notes.append(f"settings: {preset}, chosen here; the concepts' own, {theirs}, are passed over")
        chosen = ConceptList(chosen, "" if preset == PAPER else preset)
        shown = read_prompt(preview_prompt, chosen)
        if shown:
            check_vae(vae)
        settings = find_preset(preset)
        how = (strengths, prior, find_aliases, gentle_strong, bool(shown), keep_near, tuple(notes))
        wanted = Wanted(settings, width, height, seed, *how)
        erased = erase(model, clip, vae, chosen, wanted)
        pictures = {}
        if shown:
            how = {"width": width, "height": height, **sampling(model)}
            pictures = compared_pictures(cls, model, erased.model, clip, vae, shown, seed, how)
        # The concepts are for the page's sliders, which cannot know what a preset holds; what stands behind the loras
        # output has nothing to do where none are trained.
        return io.NodeOutput(
            erased.model,
            ExecutionBlocker(None) if erased.loras is None else erased.loras,
            *sized(model, width, height),
            shown or chosen[0].target,
            ui={"text": ("\n".join([*notes, *erased.lines]),), "concepts": erased.listed, **pictures},
        )
