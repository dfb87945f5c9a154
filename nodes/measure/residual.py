"""Residual Prompt: a prompt without its concept's own tokens (Fig. 2b)."""

import re

from comfy_api.latest import io

from ...mace.concepts.text import check_characters, composed
from ...mace.messages import MessageError
from ...mace.method.tokens import locate
from ..host.prompts import tokens_of
from ..host.text import TextEncoder
from ..schema import MEASURE


def as_template(prompt: str, phrase: str) -> str:
    """The prompt with every occurrence of the phrase, as whole words in any case, replaced by `{}`.

    Letters composed or not are the same. Raises ValueError when the phrase does not stand in the prompt.
    """
    for field, text in (("prompt", prompt), ("phrase", phrase)):
        check_characters(text, field)
    prompt, words = composed(prompt), composed(phrase).split()
    if "{" in prompt or "}" in prompt:
        raise ValueError("the prompt holds braces; write it without them")
    if not words:
        raise ValueError("the phrase is empty: name the concept whose tokens are to be replaced")
    pattern = r"(?<!\w)" + r"\s+".join(map(re.escape, words)) + r"(?!\w)"
    template, count = re.subn(pattern, "{}", prompt, flags=re.IGNORECASE)
    if not count:
        raise MessageError(f"the phrase {phrase!r} does not stand in the prompt {prompt!r}")
    return template


class ResidualPrompt(io.ComfyNode):
    """Encodes a prompt and puts the final end-of-text's embedding in place of the phrase's tokens."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MACE_ResidualPrompt",
            display_name="Residual Prompt (MACE)",
            category=MEASURE,
            description="A prompt whose concept is left only in the words around it (Fig. 2b of the paper): the "
            "phrase's own token embeddings are replaced by the final end-of-text's. If the concept still appears in "
            "the picture, it leaks through the other words; CFR Refine is to stop that.",
            search_aliases=["mace", "residual", "leak", "clip text encode", "fig 2"],
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder."),
                io.String.Input(
                    "prompt",
                    default="a photo of the airplane",
                    multiline=True,
                    tooltip="A prompt that names the concept.",
                ),
                io.String.Input(
                    "phrase", default="airplane", tooltip="The concept's words as they stand in the prompt."
                ),
            ],
            outputs=[io.Conditioning.Output("conditioning", tooltip="For a sampler's positive input.")],
        )

    @classmethod
    def validate_inputs(cls, prompt=None, phrase=None):
        if prompt is not None and phrase is not None:
            try:
                as_template(prompt, phrase)
            except ValueError as error:
                return str(error)
        return True

    @classmethod
    def execute(cls, clip, prompt, phrase) -> io.NodeOutput:
        encoder = TextEncoder(clip)
        template, prompt, phrase = as_template(prompt, phrase), composed(prompt), composed(phrase)
        located = locate(template, phrase, encoder.tokenize, encoder.split)
        encoder.check_length(prompt)
        # Where padding is no end-of-text (SD2.x, SDXL), the only one stands right behind the words.
        final = -1 if encoder.pads_with_end else len(located.tokens) + 1
        # SDXL also reads a pooled embedding, which would carry the concept past its words.
        neutral = clip.encode_from_tokens(clip.tokenize(""), return_pooled=True)[1]
        conditioning = []
        for embeddings, extra in clip.encode_from_tokens_scheduled(tokens_of(clip, prompt)):
            embeddings = embeddings.clone()
            for begin, end in located.spans:
                # One further than the token's index: start-of-text stands at position 0.
                embeddings[:, begin + 1 : end + 1] = embeddings[:, final].unsqueeze(1)
            conditioning.append([embeddings, {**extra, "pooled_output": neutral}])
        return io.NodeOutput(conditioning)
