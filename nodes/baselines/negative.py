"""Negative Prompt: the concepts as what the sampler is to steer away from."""

from comfy_api.latest import io, ui

from ...mace.baselines.words import joined
from ..host.prompts import tokens_of
from ..schema import COMPARE, ConceptsType


def encoded(clip, text: str):
    """The CONDITIONING of a text, as CLIP Text Encode gives it. Raises ValueError without a CLIP."""
    if clip is None:
        raise ValueError("the CLIP input is empty: this checkpoint has no text encoder; load one with a CLIP loader")
    return clip.encode_from_tokens_scheduled(tokens_of(clip, text, "text"))


class NegativePrompt(io.ComfyNode):
    """Joins the concepts' names to a negative prompt."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MACE_BaselineNegative",
            display_name="Negative Prompt (MACE baseline)",
            category=COMPARE,
            description="The names of the concepts as a negative prompt: the plainest way to avoid them, to compare an "
            "erasure with. It holds only where it is connected, and changes no model.",
            search_aliases=["mace", "negative prompt", "baseline", "avoid", "comparison"],
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder of the model that draws."),
                ConceptsType.Input("concepts", tooltip="What to avoid, from Concepts: targets and aliases."),
                io.String.Input(
                    "text",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="A negative prompt of your own, added behind the names.",
                ),
            ],
            outputs=[
                io.Conditioning.Output("conditioning", tooltip="For the negative input of a sampler."),
            ],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(cls, clip, concepts, text="") -> io.NodeOutput:
        prompt = joined(concepts, text)
        return io.NodeOutput(encoded(clip, prompt), ui=ui.PreviewText(prompt))
