"""What a CLIP's tokenizers know: their words, how they are set, and their tokens as they are compared."""

import hashlib
import re
from collections.abc import Hashable

import torch

from ...mace.pipeline.store import LastResult
from .prompts import tokens_of

# Of three letters and more, as tokenizers write them.
WORD = re.compile(r"([a-z]{3,})</w>|[\u2581\u0120]([a-z]{3,})")

# Whole words by a CLIP's encoder: to look through a vocabulary takes longer than to search its words.
_words = LastResult()


def vocabulary(clip, name: str) -> tuple[dict[int, str], torch.Tensor]:
    """(whole words by token, the token embeddings [V, d] on the CPU) of one of a CLIP's encoders, without LoRAs.

    name: of the tokenizer and of the encoder. A token is a whole word where its own mark says so: CLIP's stands behind
    words, those of T5, Llama and Qwen before them.
    """
    tokenizer, encoder = getattr(clip.tokenizer, name), getattr(clip.cond_stage_model, name)
    words = _words.get(encoder, tokenizer)
    if words is None:
        matches = {token: WORD.fullmatch(written) for token, written in tokenizer.inv_vocab.items()}
        words = {token: match[1] or match[2] for token, match in matches.items() if match}
        _words.put(encoder, tokenizer, words)
    layer = encoder.transformer.get_input_embeddings()
    return words, layer.weight.detach().to("cpu", torch.float32)


def tokenizer_options(clip) -> tuple[tuple[str, str], ...]:
    """How a CLIP's tokenizers are set, as a part of keys."""
    return tuple(sorted((name, repr(value)) for name, value in clip.tokenizer_options.items()))


def fits_at_once(clip, prompt: str) -> bool:
    """Whether a CLIP's text encoders take a prompt in one part each."""
    return all(len(parts) == 1 for parts in tokens_of(clip, prompt).values())


def token_name(token) -> Hashable:
    """A token as it is compared: its number, of a textual inversion's vector its hash."""
    return hashlib.sha256(token.float().cpu().numpy().tobytes()).hexdigest() if torch.is_tensor(token) else token
