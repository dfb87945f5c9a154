"""What is kept of itself: the words next to what is erased that are no aliases of it, and the paper's lists to keep."""

from collections.abc import Sequence
from dataclasses import replace

from ...mace.concepts.captions import written_forms
from ...mace.concepts.concept import Concept, normalised, phrases_by_key
from ...mace.concepts.lists import RETENTION
from ...mace.method.fuse import FuseWeights
from ...mace.method.prior import Prior
from ...mace.method.refine import RefineWeights
from .alias_search import Found

# lambda3 where a preset has none, and how many of the words a report names.
NEAR_WEIGHT, NAMED = 0.3, 12


def with_near(weights: RefineWeights | FuseWeights, keep: Sequence[Concept]) -> RefineWeights | FuseWeights:
    """Weights that hold what is kept, if anything is."""
    return replace(weights, lambda3=NEAR_WEIGHT) if keep and not weights.lambda3 else weights


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
