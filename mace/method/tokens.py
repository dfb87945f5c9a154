"""Which tokens of a target prompt pair with which tokens of its mapping prompt (the e^f and e^g of Eq. 1).

The two prompts are one template filled with the target phrase and with the mapping phrase. Tokens before
the phrase pair one to one; the k-th token after the phrase (words, end-of-text, padding) pairs with the k-th
token after the mapping phrase, until the shorter run ends. The phrase's own tokens are not paired: their
keys and values stay as they are until the erasure LoRA (Section 3.1, last lines). Where no LoRA is trained they can
join (`Pairing.with_own_words`), each with the mapping phrase's last token, which knows the whole of it.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace

from ..messages import MessageError

# The phrase is framed by two private-use characters before the prompt is split into weighted parts, so its
# place stays known whatever brackets stand around or inside it.
_BEGIN, _END = "\ue000", "\ue001"
LETTERS = ("a", "0")

Tokens = Sequence[Hashable]
Tokenize = Callable[[str], Tokens]
Split = Callable[[str], Sequence[str]]


class PairingError(MessageError):
    """A prompt whose tokens cannot be paired; the message holds the prompt and what to change."""


@dataclass(frozen=True)
class Pairing:
    """Positions in 0..window-1, where 0 is start-of-text.

    target[i] of the target prompt pairs with mapping[i] of the mapping prompt. phrase: the positions of the
    target phrase's own tokens in the target prompt.  own: for each of them where the mapping phrase ends in the mapping
    prompt.
    """

    target: tuple[int, ...]
    mapping: tuple[int, ...]
    phrase: tuple[int, ...]
    own: tuple[int, ...] = ()

    def with_own_words(self) -> "Pairing":
        """The same with the phrase's own tokens paired too, each with the mapping phrase's last one."""
        return replace(self, target=self.target + self.phrase, mapping=self.mapping + self.own)


@dataclass(frozen=True)
class Located:
    """A filled prompt: its tokens without start and end, and the (begin, end) token span of each phrase."""

    tokens: tuple[Hashable, ...]
    spans: tuple[tuple[int, int], ...]


def whole(text: str) -> Sequence[str]:
    """The split of a prompt language without weights: one part."""
    return (text,)


def fill(template: str, phrase: str) -> str:
    """The prompt of a template."""
    return template.replace("{}", phrase)


def locate(template: str, phrase: str, tokenize: Tokenize, split: Split = whole) -> Located:
    """Find the phrase's tokens in the filled template.

    tokenize: text without weights -> its tokens, without start and end. split: prompt -> the texts of its
    weighted parts, which are tokenised apart. A token counts as outside the phrase only when it is made of
    outside text alone: where phrase and neighbour melt into one token ("cat" + "s"), it is the phrase's.
    Raises PairingError when the template holds no `{}` or the phrase has no token in the prompt.
    """
    if "{}" not in template:
        raise PairingError(f"the prompt {template!r} has no {{}} for the phrase")
    tokens: list[Hashable] = []
    begins: list[int] = []
    ends: list[int] = []
    for part in split(fill(template, f"{_BEGIN}{phrase}{_END}")):
        plain = part.replace(_BEGIN, "").replace(_END, "")
        here = list(tokenize(plain))
        at = 0
        for character in part:
            if character == _BEGIN:
                begins.append(len(tokens) + common_start(tokenize(plain[:at]), here))
            elif character == _END:
                ends.append(len(tokens) + len(here) - _behind(here, plain[at:], tokenize))
            else:
                at += 1
        tokens.extend(here)
    spans = tuple(zip(begins, ends, strict=True))
    if any(begin >= end for begin, end in spans):
        raise PairingError(f"the phrase {phrase!r} has no token in the prompt {fill(template, phrase)!r}")
    return Located(tuple(tokens), spans)


def _behind(tokens: Sequence[Hashable], text: str, tokenize: Tokenize) -> int:
    """How many of the last tokens are made of `text` alone, which ends what they are of."""
    alone = tokenize(text)
    found = common_start(alone[::-1], tokens[::-1])
    if found < len(alone):
        # Tokenizers that put a space in front of a text cut another first token: "," as " ,". Behind two letters that
        # have nothing in common it stands as it does behind the phrase.
        others = (tokenize(letter + text) for letter in LETTERS)
        found = max(found, min(common_start(other[::-1], tokens[::-1]) for other in others))
    return found


def pair(
    template: str, target: str, mapping: str, tokenize: Tokenize, split: Split = whole, window: int = 77
) -> Pairing:
    """Pair the tokens of the template filled with target and with mapping.

    tokenize, split: as in `locate`. window: positions of the text encoder, start and end included. Raises
    PairingError when a prompt does not fit the window or a phrase is not found.
    """
    sides = (locate(template, target, tokenize, split), locate(template, mapping, tokenize, split))
    for side, phrase in zip(sides, (target, mapping), strict=True):
        if len(side.tokens) > window - 2:
            raise PairingError(
                f"the prompt {fill(template, phrase)!r} has {len(side.tokens)} tokens, the text encoder takes "
                f"{window - 2}; shorten the prompt or the phrase"
            )
    return pair_located(*sides, (1, 1), (window, window))


def pair_located(f: Located, g: Located, leads: tuple[int, int], rows: tuple[int, int]) -> Pairing:
    """Pair the rows of two prompts' features, of the target prompt f and the mapping prompt g.

    leads: the row of each prompt's first token, 1 behind start-of-text; below 0 where the rows begin inside of the
    text.  rows: how many rows each has. Positions are rows.
    """
    # A run whose edge melted into the phrase on one side only is cut to what both sides have, at that edge, so that
    # equal words still meet.
    before = min(f.spans[0][0], g.spans[0][0])
    pairs = [(k, k) for k in range(-min(leads), before)]
    for k in range(len(f.spans) - 1):
        pairs += _between(f.tokens, (f.spans[k][1], f.spans[k + 1][0]), g.tokens, (g.spans[k][1], g.spans[k + 1][0]))
    after = min(len(f.tokens) - f.spans[-1][1], len(g.tokens) - g.spans[-1][1])
    starts = (len(f.tokens) - after, len(g.tokens) - after)
    ends = (rows[0] - leads[0], rows[1] - leads[1])
    pairs += zip(range(starts[0], ends[0]), range(starts[1], ends[1]), strict=False)
    own = [(i, g_end - 1) for (begin, end), (_, g_end) in zip(f.spans, g.spans, strict=True) for i in range(begin, end)]

    def placed(found: list[tuple[int, int]]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        at = [(i + leads[0], j + leads[1]) for i, j in found]
        inside = [(i, j) for i, j in at if 0 <= i < rows[0] and 0 <= j < rows[1]]
        return tuple(i for i, _ in inside), tuple(j for _, j in inside)

    return Pairing(*placed(pairs), *placed(own))


def _between(f: Tokens, f_run: tuple[int, int], g: Tokens, g_run: tuple[int, int]) -> list[tuple[int, int]]:
    """Pairs of tokens of a run between two phrases: the shorter run is looked up in the longer one."""
    a, b = f[f_run[0] : f_run[1]], g[g_run[0] : g_run[1]]
    short, long = (a, b) if len(a) <= len(b) else (b, a)
    for shift in range(len(long) - len(short) + 1):
        if long[shift : shift + len(short)] == short:
            moves = (0, shift) if len(a) <= len(b) else (shift, 0)
            return [(f_run[0] + moves[0] + k, g_run[0] + moves[1] + k) for k in range(len(short))]
    return []


def common_start(a: Tokens, b: Tokens) -> int:
    """The length of the common beginning of two token sequences."""
    count = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        count += 1
    return count
