"""What is kept of itself: the words next to what is erased that are no aliases of it, and the paper's lists to keep."""

from collections.abc import Sequence
from dataclasses import replace

from ...mace.concepts.captions import written_forms
from ...mace.concepts.concept import Concept, normalised, phrases_by_key
from ...mace.concepts.lists import RETENTION
from ...mace.method.fuse import FuseWeights
from ...mace.method.prior import Prior
from ...mace.method.refine import RefineWeights
from ...mace.pipeline.written import is_auto
from .alias_search import Found

# lambda3 of names where a preset has none, and how many of the words a report names.
NAMED_WEIGHT, NAMED = 0.3, 12


def with_named(weights: RefineWeights | FuseWeights, prior: Prior | None) -> RefineWeights | FuseWeights:
    """A preset's weights, which hold what a prior preserves by name: with NAMED_WEIGHT where they have no lambda3."""
    named = prior is not None and prior.preserve is not None
    return replace(weights, lambda3=NAMED_WEIGHT) if named and not weights.lambda3 else weights


def written_weights(
    given: Sequence[str | float], usual: RefineWeights | FuseWeights, prior: Prior | None
) -> tuple[list[str | float], list[str]]:
    """(three weights as given, NAMED_WEIGHT in place of an auto that would leave preserved names without one; a line
    for the artist where it is so).

    usual: what auto takes otherwise.  prior: see `with_named`.
    """
    weight = with_named(usual, prior).lambda3
    if weight == usual.lambda3 or not is_auto(given[1]):
        return list(given), []
    said = f"lambda3 {weight:g} for the names that are preserved: these settings have none"
    return [given[0], repr(weight), given[2]], [said]


def captions_held_by(prior: Prior | None) -> Sequence[str]:
    """The captions of a prior that has its texts."""
    return prior.texts.captions if prior and prior.texts else ()


def kept_beside(found: Found, concepts: Sequence[Concept]) -> list[Concept]:
    """What to keep of itself: the words next to the concepts that are no aliases and the names of other things that
    hold an erased word, each in the prompts of what it lies next to, and the paper's lists to keep of the types that
    are erased, less what is erased."""
    kinds = {concept.type for concept in concepts}
    erased = written_forms(phrases_by_key([*concepts, *found.concepts]).values())
    kind = next(iter(kinds)) if len(kinds) == 1 else "object"
    named = [(word, found.kinds.get(normalised(word), kind)) for word in found.neighbours]
    named += [(name, kind) for kind, names in RETENTION.values() if kind in kinds for name in names]
    each = {normalised(word): Concept(word, "", kind) for word, kind in reversed(named)}
    return [concept for concept in reversed(each.values()) if not erased & written_forms([concept.target])]


def kept_lines(keep: Sequence[Concept]) -> list[str]:
    """What is kept, for the artist."""
    names = ", ".join(concept.target for concept in keep[:NAMED])
    more = f" and {len(keep) - NAMED} more" if len(keep) > NAMED else ""
    return [f"{names}{more}" if keep else "nothing lies near"]
