"""Which row of what a model's text port reads belongs to which token: found by running the text encoders.

A prompt reaches a port as rows, and between tokens and rows stand what a family's text encoders do with them: chat
templates that are cut off, several encoders one behind the other, zeros put in front. None of it is written down here.
What moves when an encoder's embeddings are shaken is that encoder's block of rows; what moves first when one token is
shaken says, for encoders that read forwards only, which row is that token's. Encoders that read both ways keep a row
for every token.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from comfy.sd1_clip import SDClipModel
from torch import Tensor

from ...mace.concepts.text import check_characters
from ...mace.method.tokens import PairingError, common_start, locate
from .text import TextEncoder, token_name

PROBE, PROBED = "a photo of a {} on the street, at night", "dog"
# Of the largest change; less is the rounding of a device.
MOVED = 1e-5


class Section:
    """One tokenizer of a CLIP as `mace.method.tokens` needs it: a text's own tokens and where they begin."""

    def __init__(self, clip, name: str):
        self.name, self._clip = name, clip
        own = getattr(clip.tokenizer, name, None) or getattr(clip.tokenizer, f"clip_{name}", None)
        self._pad = getattr(own, "pad_token", None)
        # Chat models take brackets as they are.
        self._weighted = any(weight != 1 for _, weight in clip.tokenize("(a:1.5)")[name][0])
        self._known: dict[str, tuple[Hashable, ...]] = {}
        empty, some = self._whole(""), self._whole("a")
        self._head = empty[: common_start(empty, some)]
        behind = len(empty) - len(self._head)
        self._tail = empty[len(empty) - common_start(empty[::-1][:behind], some[::-1]) :]

    def _whole(self, text: str) -> tuple[Hashable, ...]:
        """All tokens of a text, those of its template too, padding behind it left out."""
        check_characters(text, "prompt")
        # Weights are off: brackets still here were escaped by the artist and are meant as brackets.
        options = {"disable_weights": True} if self._weighted else {}
        (first, *more) = self._clip.tokenize(text, **options)[self.name]
        tokens = [token_name(token) for token, _ in first]
        if more:
            raise PairingError(f"the text {text!r} has more tokens than the text encoder takes at once; shorten it")
        while tokens and tokens[-1] == self._pad:
            tokens.pop()
        return tuple(tokens)

    def tokenize(self, text: str) -> tuple[Hashable, ...]:
        """Tokens of a text without weights, without those of the template around it."""
        if text not in self._known:
            tokens, head, tail = self._whole(text), len(self._head), len(self._tail)
            if tokens[:head] != self._head or tokens[len(tokens) - tail :] != self._tail:
                raise PairingError(f"{text!r} melts into the text encoder's own template; write it another way")
            self._known[text] = tokens[head : len(tokens) - tail]
        return self._known[text]

    def split(self, prompt: str) -> Sequence[str]:
        """The texts of a prompt's weighted parts, as the host's prompt language divides it for this tokenizer."""
        if not self._weighted:
            return (prompt,)
        return TextEncoder.split(prompt)

    def locate(self, template: str, phrase: str):
        """`mace.method.tokens.locate` with this tokenizer's tokens."""
        return locate(template, phrase, self.tokenize, self.split)

    def length(self, prompt: str) -> int:
        """The number of all tokens of a prompt, with template and padding."""
        return len(self._clip.tokenize(prompt)[self.name][0])

    @property
    def first(self) -> int:
        """The place of a text's first token among all tokens."""
        return len(self._head)


@dataclass(frozen=True)
class Block:
    """Rows that read one tokenizer's tokens, up to the next block's.

    section: the tokenizer's name.  start: the first row.  lead: the row, counted from `start`, of a text's first token;
    below 0 where the rows begin inside the text.
    """

    section: str
    start: int
    lead: int


@dataclass(frozen=True)
class Rows:
    """What a port reads of one prompt: values [n, d], and which rows count (neither masked nor zero), bool [n]."""

    values: Tensor
    counted: Tensor

    @property
    def kept(self) -> Tensor:
        """The rows that count."""
        return self.values[self.counted]

    @property
    def empty_in_front(self) -> int:
        """How many rows of zeros are put in front."""
        filled = self.values.abs().amax(-1) > 0
        return int(filled.int().argmax()) if filled.any() else len(filled)


def find_blocks(clip, sections: Mapping[str, Section], read: Callable[[str], Rows]) -> tuple[Block, ...]:
    """The blocks of a model's rows, in order; `start` for a prompt without zeros in front.

    sections: the CLIP's tokenizers.  read: the rows of a prompt, encoded anew. Raises ValueError where they cannot be
    told.
    """
    prompt = PROBE.replace("{}", PROBED)
    plain = read(prompt)
    blocks: dict[int, Block] = {}
    for name, section in sections.items():
        encoder = _encoder(clip, name)
        if encoder is None:
            continue
        with _shaken(encoder, None):
            moved = _moved(plain, read(prompt))
        if not len(moved):
            continue
        start, count = int(moved[0]), int(moved[-1] - moved[0]) + 1
        at = section.first + section.locate(PROBE, PROBED).spans[0][0]
        with _shaken(encoder, at):
            first = int(_moved(plain, read(prompt))[0])
        if first > start:
            found = Block(name, start - plain.empty_in_front, first - start - at + section.first)
        else:
            # The rows of encoders that read both ways; also where others' rows ask them (Anima's adapter).
            like = [each for each in (section, *sections.values()) if each.length(prompt) == count]
            if not like:
                raise ValueError(
                    f"MACE cannot tell which of the {count} rows that the model reads belong to which of the text "
                    f"encoder's {section.length(prompt)} tokens ({name})"
                )
            found = Block(like[0].name, start - plain.empty_in_front, like[0].first)
        blocks.setdefault(found.start, found)
    if not blocks:
        raise ValueError("the model reads nothing of this CLIP: connect the text encoder that belongs to it")
    return tuple(blocks[start] for start in sorted(blocks))


def _encoder(clip, name: str) -> SDClipModel | None:
    """The encoder of a section's tokens, None where it was not loaded or is no such one."""
    model = clip.cond_stage_model
    found = getattr(model, name, None) or getattr(model, f"clip_{name}", None)
    return found if isinstance(found, SDClipModel) else None


@contextmanager
def _shaken(encoder: SDClipModel, at: int | None) -> Iterator[None]:
    """Noise on the embedding of one token, or of all."""

    def shake(module, given, out: Tensor) -> Tensor:
        noise = torch.randn(out.shape[1:], generator=torch.Generator().manual_seed(0)).to(out)
        # Encoders with sparse vocabularies have rows of zeros.
        noise *= out.float().std() + 1e-2
        if at is not None:
            noise[:at] = noise[at + 1 :] = 0
        return out + noise

    handle = encoder.transformer.get_input_embeddings().register_forward_hook(shake)
    try:
        yield
    finally:
        handle.remove()


def _moved(plain: Rows, other: Rows) -> Tensor:
    """The places of the rows that differ."""
    apart = (plain.values.float() - other.values.float()).abs().amax(-1)
    return (apart > MOVED * apart.max()).nonzero()[:, 0]
