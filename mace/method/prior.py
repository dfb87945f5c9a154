"""The prior: moments of what is to be kept (lambda1 and lambda3 of Eq. 19), and the text encoder they belong to."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from ..messages import MessageError
from .moments import pack, packed_width, unpack

# Table 10's lambda1 weighs the sum over MS-COCO's captions at 77 tokens each. Keeping the mean moment a caption
# and scaling it to COCO's count makes the published numbers mean the same for any file of captions.
COCO_CAPTIONS = 616_767


# Texts whose embeddings tell text encoders apart. A bit-exact hash would refuse the same encoder in another
# precision or on another device; embeddings within PROBE_TOLERANCE give the same moments for all purposes.
PROBE_PROMPTS = (
    "a photo of a dog on the street, next to a red car",
    "portrait of a woman in a blue dress, oil painting",
    "the sky over a forest",
)
PROBE_TOKENS = 12
PROBE_TOLERANCE = 0.02
# Beyond this, more than another order of sums, what was summed by one encoder is not taken out to the digit by another.
PROBE_EXACT = 1e-4


class PriorError(MessageError):
    """A prior that cannot be read or belongs to another text encoder."""


def probe(embeddings: Tensor) -> Tensor:
    """The fingerprint of a text encoder: the first tokens of PROBE_PROMPTS' embeddings [3, N, d], float32."""
    return embeddings[:, :PROBE_TOKENS].float().cpu().contiguous()


def probe_distance(a: Tensor, b: Tensor) -> float:
    """The relative distance of two fingerprints; infinite when their shapes differ.

    The start-of-text token is left out: its embedding is the same large vector in every prompt and would
    hide a difference in the words.
    """
    if a.shape != b.shape:
        return float("inf")
    a, b = a[:, 1:].double(), b[:, 1:].double()
    return float((a - b).norm() / b.norm().clamp_min(1e-12))


# The sums of some texts' tokens [d, d], of their pooled vectors [c, c], and of the tokens as each further text of the
# model has them; float64, None of what is not read.
Sums = tuple[Tensor | None, ...]


@dataclass(frozen=True)
class PriorTexts:
    """What a prior is the sum of. captions: in order.  prompts: of each concept to preserve."""

    captions: tuple[str, ...] = field(repr=False)
    prompts: tuple[tuple[str, ...], ...] = field(repr=False)


def texts_digest(captions: Sequence[str], prompts: Sequence[Sequence[str]]) -> str:
    """SHA-256 (hex) of the texts that a prior is made of; see `PriorTexts`."""
    return hashlib.sha256(json.dumps([list(captions), [list(own) for own in prompts]]).encode()).hexdigest()


def digest_beside(digest: str) -> str:
    """Of a prior that preserves what comes of the list that is erased too: another list, the same digest."""
    return texts_digest((digest,), ())


@dataclass(frozen=True)
class Prior:
    """Moments to keep, in float64.

    mean: sum over a caption's tokens of e e^T, averaged over the captions; packed [d (d + 1) / 2], or None
    without captions.  captions: how many.  preserve: D, the unscaled sum over all prompts of the concepts to
    preserve, packed, or None.  preserved: their phrases.  left_out: phrases whose captions were left out.
    fingerprint: see `probe`.  source: where the captions came from.  pooled_mean, pooled_preserve: the same moments of
    the texts' pooled vectors [c], packed; None where the encoder's pooled text is not read, and in older files.
    texts: what was summed, None in older files.  stepped_aside: how many captions and which concepts to preserve were
    taken out of it again, see `step_aside`.  others: (mean, preserve) of each further text of a model that reads its
    prompt by several of their own.  made_of: see `digest`; "" where it is that of the texts.
    """

    mean: Tensor | None = field(repr=False)
    captions: int
    preserve: Tensor | None = field(repr=False)
    preserved: tuple[str, ...]
    fingerprint: Tensor = field(repr=False)
    source: str
    left_out: tuple[str, ...] = ()
    pooled_mean: Tensor | None = field(default=None, repr=False)
    pooled_preserve: Tensor | None = field(default=None, repr=False)
    texts: PriorTexts | None = field(default=None, repr=False)
    stepped_aside: tuple[int, tuple[str, ...]] = (0, ())
    others: tuple[tuple[Tensor | None, Tensor | None], ...] = field(default=(), repr=False)
    made_of: str = ""

    @property
    def width(self) -> int:
        """d of the text embeddings."""
        return self.fingerprint.shape[-1]

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the texts it was made of, those that were left out or stepped aside for a list among them;
        in older files of those that were summed, or of the sums where they have no texts."""
        if self.made_of:
            return self.made_of
        if self.texts is not None:
            return texts_digest(self.texts.captions, self.texts.prompts)
        found = hashlib.sha256()
        for moment in (self.mean, self.preserve):
            found.update(b"none;" if moment is None else moment.cpu().contiguous().numpy().tobytes())
        return found.hexdigest()

    def general_moment(self) -> Tensor | None:
        """P of Eq. 19 scaled to COCO's number of captions, [d, d] float64."""
        return _general(self.mean)

    def preserve_moment(self) -> Tensor | None:
        """D of Eq. 19, [d, d] float64."""
        return _preserved(self.preserve)

    def pooled_moments(self) -> tuple[Tensor | None, Tensor | None]:
        """P, scaled to COCO's number of captions, and D of the pooled texts, [c, c] float64 each or None."""
        return _general(self.pooled_mean), _preserved(self.pooled_preserve)

    def text_moments(self, place: int) -> tuple[Tensor | None, Tensor | None]:
        """P, scaled, and D of one text that the model reads, [d, d] float64 each or None. place: 0 for the tokens, from
        1 on for its further texts."""
        mean, preserve = ((self.mean, self.preserve), *self.others)[place]
        return _general(mean), _preserved(preserve)

    def check(self, fingerprint: Tensor, others: Sequence[int] = ()) -> None:
        """Raise PriorError unless the prior was made with the text encoder of this fingerprint.

        others: widths of the model's further texts.
        """
        distance = probe_distance(self.fingerprint, fingerprint)
        if not distance <= PROBE_TOLERANCE:  # also when it is not a number
            widths = f"{self.width} and {fingerprint.shape[-1]} wide"
            raise PriorError(
                f"the prior was made with another text encoder or another clip skip ({widths}, distance "
                f"{distance:.3g}); make it with the CLIP that is connected here"
            )
        parts = zip(self.others, others, strict=False)
        fits = all(packed_width(part) == width for own, width in parts for part in own if part is not None)
        if len(self.others) != len(others) or not fits:
            raise PriorError(
                "the prior does not hold all texts that this model reads its prompt by: make it with the MODEL and the "
                "CLIP that are connected here"
            )


def _general(mean: Tensor | None) -> Tensor | None:
    return None if mean is None else unpack(mean) * COCO_CAPTIONS


def _preserved(total: Tensor | None) -> Tensor | None:
    return None if total is None else unpack(total)


def make_prior(
    general: Tensor | None,
    captions: int,
    preserve: Tensor | None,
    preserved: tuple[str, ...],
    fingerprint: Tensor,
    source: str,
    left_out: tuple[str, ...] = (),
    pooled: tuple[Tensor | None, Tensor | None] = (None, None),
    texts: PriorTexts | None = None,
    others: Sequence[tuple[Tensor | None, Tensor | None]] = (),
    made_of: str = "",
) -> Prior:
    """A Prior from the summed moments [d, d] of all captions and of the concepts to preserve.

    pooled: the same of their pooled texts, [c, c].  others: the same of each further text of the model.  made_of: see
    `Prior.digest`.
    """

    def kept(of_captions: Tensor | None, of_concepts: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        return (
            pack(of_captions / captions).cpu() if of_captions is not None and captions else None,
            pack(of_concepts).cpu() if of_concepts is not None and preserved else None,
        )

    (mean, own), (pooled_mean, pooled_own) = kept(general, preserve), kept(*pooled)
    return Prior(
        mean,
        captions,
        own,
        preserved,
        fingerprint,
        source,
        left_out,
        pooled_mean,
        pooled_own,
        texts,
        others=tuple(kept(*own) for own in others),
        made_of=made_of,
    )


def step_aside(
    prior: Prior,
    captions: Sequence[str],
    captions_sums: Sums,
    preserved: Sequence[str],
    preserved_sums: Sums,
    of_rest: tuple[bool, bool] = (False, False),
) -> Prior:
    """The prior without some of its captions and of its concepts to preserve, as if they had never been in it.

    P and D are sums over texts, so that what contradicts a list is subtracted exactly. captions: to take out, as often
    as they stand in it.  preserved: phrases to take out.  captions_sums, preserved_sums: of those texts; of_rest: or of
    those that stay, in place of what the prior holds of them. Raises ValueError for a prior without its texts, and
    where a caption is not in it.
    """
    if prior.texts is None:
        raise ValueError("the prior does not hold its texts, and cannot step aside")
    out = set(captions)
    kept = [caption for caption in prior.texts.captions if caption not in out]
    if len(prior.texts.captions) - len(kept) != len(captions):
        raise ValueError("captions to take out of the prior are not all in it")
    keeps = [phrase not in set(preserved) for phrase in prior.preserved]

    def less(packed: Tensor | None, times: int, own: Tensor | None, left: int, rest: bool) -> Tensor | None:
        if packed is None or not left:
            return None
        if own is None:
            return packed
        read = pack(own.to(packed))
        return (read if rest else packed * times - read) / left

    left, still = len(kept), sum(keeps)
    scale = 1 if still else 0
    moments = [(prior.mean, prior.preserve), (prior.pooled_mean, prior.pooled_preserve), *prior.others]
    (mean, preserve), (pooled_mean, pooled_preserve), *others = (
        (
            less(of_captions, prior.captions, captions_sums[place] if captions else None, left, of_rest[0]),
            less(of_concepts, 1, preserved_sums[place] if preserved else None, scale, of_rest[1]),
        )
        for place, (of_captions, of_concepts) in enumerate(moments)
    )
    return replace(
        prior,
        mean=mean,
        pooled_mean=pooled_mean,
        captions=left,
        preserve=preserve,
        pooled_preserve=pooled_preserve,
        others=tuple(others),
        preserved=tuple(phrase for phrase, keep in zip(prior.preserved, keeps, strict=True) if keep),
        texts=PriorTexts(tuple(kept), tuple(own for own, keep in zip(prior.texts.prompts, keeps, strict=True) if keep)),
        stepped_aside=(prior.stepped_aside[0] + len(captions), (*prior.stepped_aside[1], *preserved)),
        made_of=prior.digest,
    )


def preserve_more(prior: Prior, names: Sequence[str], prompts: Sequence[tuple[str, ...]], sums: Sums) -> Prior:
    """The prior with further concepts to preserve, as if it had been made with them, but for its digest.

    names: their phrases.  prompts: of each of them.  sums: of all these prompts.
    """

    def more(packed: Tensor | None, own: Tensor | None) -> Tensor | None:
        if own is None:
            return packed
        added = pack(own).cpu()
        return added if packed is None else packed + added

    preserve, pooled, *others = (
        more(of_concepts, own)
        for of_concepts, own in zip(
            (prior.preserve, prior.pooled_preserve, *(own for _, own in prior.others)), sums, strict=True
        )
    )
    texts = prior.texts
    return replace(
        prior,
        preserve=preserve,
        pooled_preserve=pooled,
        others=tuple((mean, own) for (mean, _), own in zip(prior.others, others, strict=True)),
        preserved=(*prior.preserved, *names),
        texts=None if texts is None else PriorTexts(texts.captions, (*texts.prompts, *prompts)),
        made_of=digest_beside(prior.digest),
    )
