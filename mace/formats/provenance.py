"""What a saved checkpoint says of the stages it went through."""

from collections.abc import Sequence

from ..concepts.concept import Concept, preset_of
from ..method.prior import Prior
from ..method.refine import Refinement


def concept_record(concept: Concept) -> dict:
    """A concept as it stands in a saved checkpoint's provenance."""
    return {
        "target": concept.target,
        "mapping": concept.mapping,
        "type": concept.type,
        "aliases": list(concept.aliases),
        "own_prompts": list(concept.templates),
    }


def prior_record(prior: Prior | None) -> dict | None:
    """A prior as it stands in a saved checkpoint's provenance."""
    if prior is None:
        return None
    record = {"source": prior.source, "captions": prior.captions, "preserved": list(prior.preserved)}
    record["sha256"] = prior.digest
    captions, preserved = prior.stepped_aside
    if captions or preserved:
        record["stepped_aside"] = {"captions": captions, "preserved": list(preserved)}
    return record


def refinement_record(done: Refinement, strengths: Sequence[float] | None = None) -> dict:
    """One refinement as it stands in a saved checkpoint's provenance. strengths: of single concepts, if they differ."""
    concepts = [concept_record(concept) for concept in done.concepts]
    if strengths is not None:
        concepts = [own | {"strength": strength} for own, strength in zip(concepts, strengths, strict=True)]
    preset = preset_of(done.concepts)
    return {
        "stage": "refinement",
        **({"preset": preset} if preset else {}),
        "concepts": concepts,
        "settings": dict(done.settings),
        "clip_layer": done.clip_layer,
        "lambda1": done.weights.lambda1,
        "lambda3": done.weights.lambda3,
        "mu": done.weights.mu,
        "metric": done.weights.metric,
        "strength": done.strength,
        "projections": done.projections,
        "pooled_text": done.pooled_delta is not None,
        **({"further_texts": len(done.other_deltas)} if done.other_deltas else {}),
        "own_words": done.own_words,
        "prior": prior_record(done.prior),
    }
