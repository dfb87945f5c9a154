"""Erasure LoRAs of several concepts with all that their fusion needs: what a node passes on, and a set file holds."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor

from ..concepts.concept import Concept, normalised, preset_of
from ..messages import MessageError
from ..method.lora import Lora
from ..method.moments import ConceptMoments
from ..method.prior import Prior
from ..method.refine import Refinement, RefineWeights
from .lora_layouts import Base
from .moments_file import FileMoments


class LoraSetError(MessageError):
    """LoRAs that do not go together, or are not of this model; the message says what to do."""


@dataclass(frozen=True)
class ErasureLora:
    """One concept's trained LoRA.

    lora: (B [d_out, r], A [r, d]) by the host's key, float32 on the CPU.  losses: Eq. 3's of every step, [steps]
    float32; empty for an imported LoRA.  settings: how it was trained, for the record.  moments: of the concept, None
    where they are not at hand.  refined_on: which refinement its W' was of ("" where unknown); see `Recipe.digest`.
    """

    concept: Concept
    lora: Lora = field(repr=False)
    losses: Tensor = field(repr=False)
    settings: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    moments: ConceptMoments | FileMoments | None = None
    refined_on: str = ""


@dataclass(frozen=True)
class Recipe:
    """The refinement that LoRAs were trained on, without its concepts and moments; fields as in `Refinement`.

    digest: SHA-256 (hex) of its transform, so that LoRAs trained on another one are told apart.  prior_source: what
    the prior was made from, None without a prior.  prior: the prior itself, None where it is not at hand.  pooled:
    whether the pooled text is refined too.  own_words: whether the concepts' own tokens are paired too.  preset: the
    one that the concepts carried, "" for none.  whole_prior: see `Refinement`; not in files.
    """

    weights: RefineWeights
    strength: float
    projections: str
    settings: Mapping[str, str]
    fingerprint: Tensor = field(repr=False)
    clip_layer: int | None
    digest: str
    prior_source: str | None = None
    prior: Prior | None = None
    pooled: bool = False
    own_words: bool = False
    preset: str = ""
    whole_prior: Prior | None = None


def refinement_digest(refinement: Refinement | None) -> str:
    """SHA-256 (hex) of what a Refinement does to the weights, by which LoRAs know theirs; "" for None.

    What it is of is written out as it was from the first version on, so that files that were saved still know theirs.
    """
    if refinement is None:
        return ""
    transform = refinement.transform_delta
    deltas = [transform] if isinstance(transform, Tensor) else [transform.left, transform.right]
    parts = [*deltas, refinement.strength, refinement.projections]
    parts += [] if refinement.pooled_delta is None else [refinement.pooled_delta]
    digest = hashlib.sha256(f"list {len(parts)};".encode())
    for part in parts:
        if isinstance(part, Tensor):
            digest.update(f"tensor {part.dtype} {tuple(part.shape)} ;".encode())
            digest.update(part.cpu().contiguous().numpy())
        else:
            digest.update(f"{type(part).__name__} {part!r};".encode())
    return digest.hexdigest()


def recipe_of(refinement: Refinement, digest: str) -> Recipe:
    """The recipe of a refinement. digest: see `Recipe`."""
    return Recipe(
        refinement.weights,
        refinement.strength,
        refinement.projections,
        refinement.settings,
        refinement.fingerprint,
        refinement.clip_layer,
        digest,
        refinement.prior.source if refinement.prior else None,
        refinement.prior,
        refinement.pooled_delta is not None,
        refinement.own_words,
        preset_of(refinement.concepts),
        refinement.whole_prior,
    )


@dataclass(frozen=True)
class LoraSet:
    """Erasure LoRAs of one model.

    recipe: of the refinement they were trained on, None for imported LoRAs.  blocks: the UNet's num_res_blocks (one a
    level), which names in other layouts depend on.  base: the model's family, None when unknown.
    """

    loras: tuple[ErasureLora, ...]
    recipe: Recipe | None
    blocks: tuple[int, ...]
    base: Base | None = None

    @property
    def concepts(self) -> tuple[Concept, ...]:
        """The concepts, in order."""
        return tuple(lora.concept for lora in self.loras)


def join(first: LoraSet, second: LoraSet) -> LoraSet:
    """Two sets as one; the first one's recipe goes before the second's.

    Raises LoraSetError for a phrase (target or alias) that both hold and for sets of different UNets.
    """
    if first.blocks != second.blocks:
        raise LoraSetError("the two sets of LoRAs are of different models")
    known = {normalised(phrase) for concept in first.concepts for phrase in concept.phrases}
    for concept in second.concepts:
        twice = next((phrase for phrase in concept.phrases if normalised(phrase) in known), None)
        if twice is not None:
            raise LoraSetError(f"{twice!r} has an erasure LoRA in both sets; take one of them out")
    return replace(
        first,
        loras=(*first.loras, *second.loras),
        recipe=first.recipe or second.recipe,
        base=first.base or second.base,
    )
