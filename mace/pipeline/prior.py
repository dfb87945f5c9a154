"""The prior as a stage: captions drawn and summed, concepts to preserve."""

import random
import weakref
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from ..concepts import captions as caption_sources
from ..concepts.concept import Concept, normalised, parse_concepts, phrases_by_key
from ..concepts.lists import RETENTION
from ..messages import MessageError
from ..method.prior import (
    PROBE_EXACT,
    Prior,
    PriorTexts,
    Sums,
    digest_beside,
    make_prior,
    preserve_more,
    probe_distance,
    texts_digest,
)
from ..method.prior import step_aside as without
from ..method.tokens import fill
from .host import Progress, Text
from .store import LastResult

BUILT_IN = "built-in"
# Captions that a report shows of those left out or taken out.
SHOWN = 8

# The last prior that stepped aside by text encoder, with the one it was: other weights ask for it again.
_last_aside = LastResult()
# The last captions' moment by text encoder: another list of concepts leaves out other captions, and taking their
# part off the whole spares encoding thousands of captions again.
_last_general = LastResult()
# The last prior that preserves more than it did by text encoder, with the one it was, and the last moments of concepts
# to preserve: other strengths ask for them again.
_last_more, _last_preserve = LastResult(), LastResult()


@dataclass(frozen=True)
class Drawn:
    """The captions of a prior: those summed, those left out since they name a target, and how many were too long."""

    kept: Sequence[str]
    left_out: Sequence[str]
    too_long: int


@dataclass(frozen=True)
class CaptionSource:
    """Where captions are drawn from. name: BUILT_IN, or how records call a file.  count: the most that are drawn, by
    seed.  path: of the file.  stamp: what changes when the file does.
    """

    name: str
    count: int
    seed: int
    path: Path | None = None
    stamp: Hashable = None

    @property
    def record(self) -> str:
        """The source as a prior states it."""
        return f"built-in, seed {self.seed}" if self.name == BUILT_IN else self.name


def draw_captions(source: CaptionSource) -> list[str]:
    """`count` captions of the built-in grammar, or as many of a file, drawn by seed where it holds more."""
    count = source.count
    if count == 0:
        return []
    if source.path is None:
        return caption_sources.builtin_captions(count, source.seed)
    found = caption_sources.read_captions(source.path)
    return random.Random(source.seed).sample(found, count) if len(found) > count else found


def keepers(preserve: str, preserve_type: str, retention: str, concepts: Sequence[Concept] = ()) -> list[Concept]:
    """The concepts to preserve, each phrase once: the paper's list, then the lines and their aliases.

    concepts: those to erase, which the paper's list gives way to. Raises ConceptError for a bad line.
    """
    kind, names = RETENTION.get(retention, (preserve_type, ()))
    erased = phrases_by_key(concepts)
    phrases = {normalised(name): Concept(name, "", kind) for name in names if normalised(name) not in erased}
    for line in parse_concepts(preserve, preserve_type, mapped=False, field="preserve"):
        for phrase in line.phrases:
            phrases.setdefault(normalised(phrase), Concept(phrase, "", line.type))
    return list(phrases.values())


def literal(caption: str) -> str:
    """A caption as a prompt: its brackets are brackets and not weights."""
    return caption.replace("(", r"\(").replace(")", r"\)")


def general_moment(
    encoder: Text, drawn: Sequence[str], left_out: Sequence[str], source: CaptionSource, step: Callable[[int], None]
) -> Sums:
    """`Text.gram` of the captions drawn and not left out.

    source: of the captions drawn. They are summed once for it, and the left out taken off.
    """
    model, key = encoder.module, (encoder.identity, source)
    total = _last_general.get(model, key)
    if total is not None:
        step(len(drawn))
    else:
        found = encoder.gram([literal(caption) for caption in drawn], step)
        # On the CPU: the host does not manage what stays on the device between runs.
        total = tuple(None if part is None else part.cpu() for part in found)
        _last_general.put(model, key, total)
    if not left_out:
        return total
    less = encoder.gram([literal(caption) for caption in left_out], step)
    return tuple(None if part is None else part - own.cpu() for part, own in zip(total, less, strict=True))


def preserve_sums(encoder: Text, prompts: Sequence[str], step: Callable[[int], None]) -> Sums:
    """`Text.gram` of the prompts of concepts to preserve."""
    key = (encoder.identity, tuple(prompts))
    found = _last_preserve.get(encoder.module, key)
    if found is not None:
        step(len(prompts))
        return found
    # On the CPU, as the captions' moment.
    found = tuple(None if part is None else part.cpu() for part in encoder.gram(prompts, step))
    _last_preserve.put(encoder.module, key, found)
    return found


def has_read_preserved(encoder: Text) -> bool:
    """Whether moments of concepts to preserve are kept from before."""
    return encoder.module in _last_preserve


def captions_to_read(encoder: Text, source: CaptionSource) -> int:
    """How many captions `build_prior` would read: none where their sum is kept from before."""
    return source.count if _last_general.get(encoder.module, (encoder.identity, source)) is None else 0


def prompts_of(concept: Concept) -> tuple[str, ...]:
    """The prompts that a concept to preserve is read in."""
    return tuple(fill(template, concept.target) for template in concept.prompts)


def _why_none(found: int, drawn: int) -> str:
    """Why no caption is left. found: captions there were.  drawn: those that fit the text encoder."""
    if not found:
        return "no captions are asked for (count is 0)"
    if not drawn:
        return f"all {found} captions are longer than the text encoder takes at once: shorten them"
    long = f" ({found - drawn} others are too long for the text encoder)" if drawn < found else ""
    return f"all {drawn} captions name what is to be erased{long}: give others"


def build_prior(
    encoder: Text,
    progress: Progress,
    source: CaptionSource,
    keep: Sequence[Concept] = (),
    concepts: Sequence[Concept] = (),
    beside: Sequence[Concept] = (),
) -> tuple[Prior, Drawn]:
    """The moments of captions and of what is to be kept, without the captions that name what is to be erased.

    keep: the concepts to preserve.  concepts: those to erase.  beside: to preserve too, as `preserve_also` does. Raises
    ValueError where a concept is both, and where nothing is left.
    """
    chosen, keep = len(keep), [*keep, *beside]
    erased = phrases_by_key(concepts)
    for concept in keep:
        if normalised(concept.target) in erased:
            raise MessageError(f"{concept.target!r} is both to be erased and to be preserved; take it out of one list")
    found = draw_captions(source)
    drawn = encoder.fitting(found, literal)
    kept, left_out = caption_sources.leave_out(drawn, erased.values(), [concept.target for concept in keep])
    if not kept and not keep:
        why = _why_none(len(found), len(drawn))
        raise ValueError(f"there is nothing to keep: {why}; and no concept to preserve is named")
    kept_prompts = tuple(map(prompts_of, keep))
    prompts = [prompt for own in kept_prompts for prompt in own]
    step = progress.begin(len(drawn) + len(left_out) + len(prompts))
    general, pooled, *others = general_moment(encoder, drawn, left_out, source, step) if kept else (None, None)
    preserve, pooled_preserve, *others_preserve = preserve_sums(encoder, prompts, step) if prompts else (None, None)
    made_of = texts_digest(drawn, kept_prompts[:chosen])
    prior = make_prior(
        general,
        len(kept),
        preserve,
        tuple(concept.target for concept in keep),
        encoder.fingerprint,
        source.record,
        tuple(erased.values()),
        (pooled, pooled_preserve),
        PriorTexts(tuple(kept), kept_prompts),
        tuple(zip_longest(others, others_preserve)),
        digest_beside(made_of) if beside else made_of,
    )
    return prior, Drawn(kept, left_out, len(found) - len(drawn))


def named_captions(prior: Prior, targets: Iterable[str]) -> list[str]:
    """The captions of a prior with its texts that name a target, and not only within a longer phrase it preserves."""
    return caption_sources.leave_out(prior.texts.captions, targets, prior.preserved)[1]


def step_aside(
    prior: Prior, concepts: Sequence[Concept], encoder: Text, captions: bool, lines: list[str], progress: Progress
) -> Prior:
    """The prior without what contradicts a list: captions that name a target or an alias, preserved names erased now.

    captions: whether its captions count at all; else they stay.  encoder: the prior's own, or one that is near to it
    (see `Prior.check`): then the fewer of what goes and what stays are read by it, so that its error never outweighs
    what stays. What was taken out is said in `lines`. A prior without its texts stays as it is. Raises PriorError for
    another text encoder.
    """
    if prior.texts is None:
        return prior
    targets = phrases_by_key(concepts)
    contrary = [phrase for phrase in prior.preserved if normalised(phrase) in targets]
    named = named_captions(prior, targets.values()) if captions else []
    if not named and not contrary:
        return prior
    prior.check(encoder.fingerprint, encoder.other_widths)
    distance = probe_distance(prior.fingerprint, encoder.fingerprint)
    found = _last_of(
        prior,
        _last_aside,
        encoder,
        (tuple(named), tuple(contrary)),
        lambda: _taken_out(prior, named, contrary, encoder, distance <= PROBE_EXACT, progress),
    )
    if named:
        lines.append(f"taken out of the prior: {len(named)} of {prior.captions} captions, which name what is erased")
        lines += [f"  taken out: {caption}" for caption in named[:SHOWN]]
    if contrary:
        lines.append(f"no longer preserved, for it is erased now: {', '.join(contrary)}")
    if distance > PROBE_EXACT:
        lines.append(
            f"this CLIP is near the prior's own and not the same (another precision, a LoRA; distance {distance:.2g}): "
            "what is taken out is as near; a prior made with it is exact"
        )
    return found


def _last_of(prior: Prior, last: LastResult, encoder: Text, about: tuple, make: Callable[[], Prior]) -> Prior:
    """The prior that was last made from this one where the encoder and `about` are the same, else make()."""
    key = (encoder.identity, *about)
    whole, found = last.get(encoder.module, key) or (None, None)
    if whole is None or whole() is not prior:
        found = make()
        # What it was made from is the host's to keep.
        last.put(encoder.module, key, (weakref.ref(prior), found))
    return found


def _taken_out(
    prior: Prior, named: Sequence[str], contrary: Sequence[str], encoder: Text, exact: bool, progress: Progress
) -> Prior:
    """The prior without captions and preserved phrases. exact: whether the encoder is the one that it was made with."""
    gone, out = set(named), set(contrary)
    rest = [caption for caption in prior.texts.captions if caption not in gone]
    prompts: dict[bool, list[str]] = {True: [], False: []}
    for phrase, own in zip(prior.preserved, prior.texts.prompts, strict=True):
        prompts[phrase in out] += own
    parts = [(named, rest), (prompts[True], prompts[False])]
    of_rest = tuple(not exact and 0 < len(stay) < len(go) for go, stay in parts)
    read = [stay if fewer else go for (go, stay), fewer in zip(parts, of_rest, strict=True)]
    step = progress.begin(sum(map(len, read)))
    sums = encoder.gram([literal(caption) for caption in read[0]], step) if read[0] else (None, None)
    own = encoder.gram(read[1], step) if read[1] else (None, None)
    return without(prior, named, sums, contrary, own, of_rest)


def preserve_also(prior: Prior, keep: Sequence[Concept], encoder: Text, progress: Progress) -> Prior:
    """The prior that preserves further concepts too; those that it preserves already count once.

    They come of the list that is erased, and `Prior.digest` says of them only that there are some. encoder: the prior's
    own (see `Prior.check`).
    """
    known = set(map(normalised, prior.preserved))
    new = [concept for concept in keep if normalised(concept.target) not in known]
    if not new:
        return prior
    prompts = tuple(map(prompts_of, new))

    def make() -> Prior:
        every = [prompt for own in prompts for prompt in own]
        sums = preserve_sums(encoder, every, progress.begin(len(every)))
        return preserve_more(prior, tuple(concept.target for concept in new), prompts, sums)

    return _last_of(prior, _last_more, encoder, (prompts,), make)
