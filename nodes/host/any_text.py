"""A CLIP of any family, for what only draws with it."""

from collections.abc import Callable, Hashable, Sequence
from functools import cached_property

import torch

from .kept.content import content_sha256, text_sha256
from .model.unet import is_unet, weights_sha256
from .port_rows import Section
from .prompts import tokens_of
from .text import TextEncoder
from .tokenizers import fits_at_once, token_name, tokenizer_options, vocabulary

# How the host's encoders are set besides their weights and what is set anew for each prompt.
SETTINGS = ("options_default", "special_tokens", "enable_attention_masks", "zero_out_masked")
SETTINGS += ("layer_norm_hidden_state", "return_attention_masks")


class AnyText:
    """What `TextEncoder` is to drawing, for the text encoders of other models."""

    def __init__(self, clip):
        if clip is None:
            raise ValueError("the CLIP input is empty: connect the text encoder that belongs to the model")
        self.clip = clip

    def tokenize(self, text: str) -> tuple[Hashable, ...]:
        """All tokens of a prompt and their weights, of all its tokenizers."""
        sections = tokens_of(self.clip, text)
        return tuple(
            # LongCat's padding has a word's number too.
            (name, tuple((token_name(token), weight) for part in parts for token, weight, *_ in part))
            for name, parts in sections.items()
        )

    def content(self, *phrases: str) -> tuple:
        """As `TextEncoder.content`."""
        return (self._sha256, self.clip.layer_idx, tokenizer_options(self.clip), [*map(self.tokenize, phrases)])

    @cached_property
    def _sha256(self) -> str:
        clip, module = self.clip, self.clip.cond_stage_model
        encoders = [(name, part) for name, part in module.named_modules() if hasattr(part, "options_default")]
        # `text_sha256` passes over projections, of which UNets read CLIP-G's alone. Other models read what an encoder
        # gives projected; where it does not, there stands what the memory held before.
        unread = [f"{name}.transformer.text_projection" for name, part in encoders if not part.options_default[2]]
        projected = weights_sha256(
            clip.patcher, None, lambda name: "text_projection" in name and not name.startswith(tuple(unread))
        )
        settings = [[name, *(getattr(part, own) for own in SETTINGS)] for name, part in encoders]
        hooks = (clip.use_clip_schedule, clip.apply_hooks_to_conds)
        return content_sha256(text_sha256(clip), projected, settings, hooks)

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
