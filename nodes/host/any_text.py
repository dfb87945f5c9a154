"""A CLIP of any family, for what only draws with it."""

from collections.abc import Callable, Hashable, Sequence

import torch

from ...mace.method.prior import PROBE_PROMPTS
from .kept.content import content_sha256
from .model.unet import is_unet
from .port_rows import Section
from .prompts import tokens_of
from .text import TextEncoder
from .tokenizers import fits_at_once, token_name, tokenizer_options, vocabulary


class AnyText:
    """What `TextEncoder` is to drawing, for the text encoders of other models."""

    def __init__(self, clip):
        if clip is None:
            raise ValueError("the CLIP input is empty: connect the text encoder that belongs to the model")
        self.clip = clip
        probes = [clip.encode_from_tokens(clip.tokenize(prompt)) for prompt in PROBE_PROMPTS]
        digest = content_sha256([probe.to("cpu", torch.float32) for probe in probes])
        self._content = (digest, clip.layer_idx, tokenizer_options(clip))

    def tokenize(self, text: str) -> tuple[Hashable, ...]:
        """All tokens of a prompt and their weights, of all its tokenizers."""
        sections = tokens_of(self.clip, text)
        return tuple(
            (name, tuple((token_name(token), weight) for part in parts for token, weight in part))
            for name, parts in sections.items()
        )

    def content(self, *phrases: str) -> tuple:
        """As `TextEncoder.content`."""
        return (*self._content, [self.tokenize(phrase) for phrase in phrases])

    def vocabulary(self) -> tuple[dict[int, str], torch.Tensor]:
        """`nodes.host.tokenizers.vocabulary` of the first encoder, CLIP's where there is one."""
        return vocabulary(self.clip, self._speaker[1])

    def phrase_tokens(self, phrase: str) -> list[int]:
        """As `TextEncoder.phrase_tokens`, of the encoder of `vocabulary`."""
        tokens = Section(self.clip, self._speaker[0]).tokenize(phrase)
        return [token for token in tokens if isinstance(token, int)]

    @property
    def _speaker(self) -> tuple[str, str]:
        """The names of that encoder's tokens and of itself."""
        sections = self.clip.tokenize("")
        for section in sorted(sections, key=lambda name: name not in ("l", "g")):
            for name in (section, f"clip_{section}"):
                if getattr(self.clip.cond_stage_model, name, None) is not None and hasattr(self.clip.tokenizer, name):
                    return section, name
        raise ValueError("this CLIP's encoders have no vocabulary that MACE can read: name the words to try")

    def fitting(self, texts: Sequence[str], as_prompt: Callable[[str], str]) -> list[str]:
        """The texts whose prompts the text encoder takes at once."""
        return [text for text in texts if fits_at_once(self.clip, as_prompt(text))]

    def check_width(self, model) -> None:
        """Nothing: the model says for itself that a text is not its own."""

    def check_length(self, prompt: str) -> None:
        """Nothing: the host cuts prompts that are too long into parts."""


def text_to_draw_with(clip, *models) -> TextEncoder | AnyText:
    """The text of a CLIP for drawing with MODELs."""
    return TextEncoder(clip) if all(map(is_unet, models)) else AnyText(clip)
