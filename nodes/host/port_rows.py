"""Which row of what a model's text port reads belongs to which token: found by running the text encoders.

A prompt reaches a port as rows, and between tokens and rows stand what a family's text encoders do with them: chat
templates that are cut off, several encoders one behind the other, zeros put in front. None of it is written down here.
What moves when an encoder's embeddings are shaken is that encoder's block of rows; what moves first when one token is
shaken says, for encoders that read forwards only, which row is that token's. Encoders that read both ways keep a row
for every token.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ...mace.concepts.text import check_characters
from ...mace.method.tokens import PairingError, common_start, locate
from .text import TextEncoder
from .tokenizers import token_name

PROBE, PROBED = "a photo of a {} on the street, at night", "dog"
# Texts that begin with no token in common, and end with none: two of them may, such as a space of its own.
APART = ("a", "0", "dog", "The", "red")
# Of the largest change; less is the rounding of a device.
MOVED = 1e-5


class Section:
    """One tokenizer of a CLIP as `mace.method.tokens` needs it: a text's own tokens and where they begin."""

    def __init__(self, clip, name: str):
        self.name, self._clip = name, clip
        own = getattr(clip.tokenizer, name, None) or getattr(clip.tokenizer, f"clip_{name}", None)
        self._pad = getattr(own, "pad_token", None)
        # Chat models take brackets as they are.
        self._weighted = any(entry[1] != 1 for entry in clip.tokenize("(a:1.5)")[name][0])
        self._known: dict[str, tuple[Hashable, ...]] = {"": ()}
        self._pads_inside = False
        # LongCat's padding stands between the text and the end of the template.
        self._pads_inside = self._whole(APART[0]).count(self._pad) > 1
        # Not the empty text: some templates have another form for it.
        one, *others = map(self._whole, APART)
        head = min(common_start(one, other) for other in others)
        behind = min(common_start(one[::-1], other[::-1]) for other in others)
        self._head, self._tail = one[:head], one[max(head, len(one) - behind) :]

    def _whole(self, text: str) -> tuple[Hashable, ...]:
        """All tokens of a text, those of its template too, padding behind it left out."""
        check_characters(text, "prompt")
        if self._weighted:
            # Brackets still here were escaped by the artist and are meant as brackets. Not every tokenizer takes an
            # option that turns weights off.
            text = text.replace("(", "\\(").replace(")", "\\)")
        (first, *more) = self._clip.tokenize(text)[self.name]
        tokens = [token_name(entry[0]) for entry in first]
        if more:
            raise PairingError(f"the text {text!r} has more tokens than the text encoder takes at once; shorten it")
        while tokens and tokens[-1] == self._pad:
            tokens.pop()
        if self._pads_inside:
            tokens = [token for token in tokens if token != self._pad]
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

    def lengths(self, prompt: str) -> tuple[int, int]:
        """The number of all tokens of a prompt without weights, with template: with padding, and without it."""
        return len(self._clip.tokenize(prompt)[self.name][0]), len(self._whole(prompt))

    @property
    def first(self) -> int:
        """The place of a text's first token among all tokens."""
        return len(self._head)


@dataclass(frozen=True)
class Block:
    """Rows that read one tokenizer's tokens, up to the next block's.

    section: the tokenizer's name.  start: the first row.  lead: the row, counted from `start`, of a text's first token;
    below 0 where the rows begin inside the text.  wholes: how many rows in front of `start` are each of the whole text,
    such as its mean.
    """

    section: str
    start: int
    lead: int
    wholes: int = 0


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


def find_blocks(
    clip,
    sections: Mapping[str, Section],
    read: Callable[[str], Sequence[Rows]],
    encoded: Callable[[str], Tensor | None],
) -> list[tuple[Block, ...]]:
    """By text that the model reads, the blocks of its rows, in order; `start` for a prompt without zeros in front.

    sections: the CLIP's tokenizers.  read: each text's rows of a prompt, encoded anew.  encoded: what the CLIP gives
    for it, [n, d]. A text that no encoder's tokens move has no block. Raises ValueError where blocks cannot be told.
    """
    prompt = PROBE.replace("{}", PROBED)
    plain = read(prompt)

    def moved() -> list[Tensor]:
        return [_moved(ours.values, theirs.values) for ours, theirs in zip(plain, read(prompt), strict=True)]

    blocks: list[dict[int, Block]] = [{} for _ in plain]
    for name, section in sections.items():
        encoder = _encoder(clip, name)
        if encoder is None:
            continue
        with _shaken(encoder, None):
            by_all = moved()
        if not any(map(len, by_all)):
            continue
        at = section.first + section.locate(PROBE, PROBED).spans[0][0]
        with _shaken(encoder, at):
            by_one = moved()
        for found, rows, every, one in zip(blocks, plain, by_all, by_one, strict=True):
            if not len(every):
                continue
            start, count, first = int(every[0]), int(every[-1] - every[0]) + 1, int(one[0])
            own = None
            if first == start:
                own = _of_both_ways(section, sections, start, count)
                given = encoded(prompt) if own is None else None
                if given is not None and len(given) == len(rows.values):
                    # What the encoder gives is mixed before it is read (Krea2's layers), and has the same rows.
                    with _shaken(encoder, at):
                        first = int(_moved(given, encoded(prompt))[0])
                if own is None and first == start:
                    raise ValueError(
                        f"MACE cannot tell which of the {count} rows that the model reads belong to which of the text "
                        f"encoder's {section.lengths(prompt)[0]} tokens ({name})"
                    )
            own = own or Block(name, start, first - start - at + section.first)
            own = replace(own, start=own.start - rows.empty_in_front)
            found.setdefault(own.start, own)
    if not any(blocks):
        raise ValueError("the model reads nothing of this CLIP: connect the text encoder that belongs to it")
    return [tuple(found[start] for start in sorted(found)) for found in blocks]


def _of_both_ways(section: Section, sections: Mapping[str, Section], start: int, count: int) -> Block | None:
    """The block of `count` rows from `start` on, of an encoder that reads both ways and has a row for every token.

    Those of padding are zeros in some. Also where others' rows ask the encoder's (Anima's adapter). A row of the whole
    text may stand in front (HunyuanDiT's pooler). None where no tokenizer has as many tokens.
    """
    prompt = PROBE.replace("{}", PROBED)
    for wholes in (0, 1):
        like = [each for each in (section, *sections.values()) if count - wholes in each.lengths(prompt)]
        if like:
            return Block(like[0].name, start + wholes, like[0].first, wholes)
    return None


def _encoder(clip, name: str) -> nn.Module | None:
    """The encoder of a section's tokens, None where it was not loaded or is no such one."""
    model = clip.cond_stage_model
    found = getattr(model, name, None) or getattr(model, f"clip_{name}", None)
    return found if hasattr(getattr(found, "transformer", None), "get_input_embeddings") else None


@contextmanager
def _shaken(encoder: nn.Module, at: int | None) -> Iterator[None]:
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


def _moved(plain: Tensor, other: Tensor) -> Tensor:
    """The places of the rows [n, d] that differ."""
    apart = (plain.float() - other.float()).abs().amax(-1)
    return (apart > MOVED * apart.max()).nonzero()[:, 0]
