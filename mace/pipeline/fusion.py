"""Fusing erasure LoRAs into a model (Section 3.3): what goes in, the solve, the patches, the record of it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from torch import Tensor

from ..concepts.concept import Concept, normalised, phrases_by_key
from ..concepts.strengths import strange_lines, strengths_of, with_strength
from ..formats.lora_set import ErasureLora, LoraSet, LoraSetError, Recipe, recipe_of, refinement_digest
from ..formats.provenance import concept_record, prior_record
from ..method.fuse import ALL_TO_REFINED, TO_BASE, TO_REFINED, FuseWeights, fuse, naive
from ..method.lora import Lora
from ..method.prior import PROBE_TOLERANCE, Prior, probe_distance
from ..method.refine import Refinement, pooled_weight_delta
from ..method.refine import refinement as solve_refinement
from ..method.sums import Moments, collect_moments
from .host import Edit, Progress, Text, Weights
from .prior import named_captions, step_aside
from .refine import check_preserved, held_names, reading, solve_pooled
from .written import read_weights

CLOSED_FORM, NAIVE = "closed form (Eq. 7)", "naive sum (Eq. 6)"
TOWARDS = {"refined weights (release)": TO_REFINED, "original weights (Eq. 7)": TO_BASE}
TOWARDS |= {"prior too (refined weights)": ALL_TO_REFINED}


def pull_name(weights: FuseWeights | None) -> str:
    """Which of TOWARDS a preset's weights take; the published code's where it has none."""
    wanted = TO_REFINED if weights is None else weights.pull
    return next(name for name, pull in TOWARDS.items() if pull == wanted)


@dataclass(frozen=True)
class Parts:
    """What is fused: one entry a concept in each; a concept without a LoRA has an empty mapping."""

    concepts: tuple[Concept, ...]
    moments: Moments
    loras: tuple[Lora, ...]
    settings: tuple[dict, ...]
    recipe: Recipe


def gather(
    loras: LoraSet, refinement: Refinement | None, text: Text | None, lines: list[str], progress: Progress
) -> Parts:
    """The concepts with their moments and LoRAs: those of the refinement where one is given, else the set's own.

    Raises LoraSetError when moments are missing and no text is given, for LoRAs without a refinement, and for another
    text encoder than the LoRAs were trained with.
    """
    by_name = {normalised(entry.concept.target): entry for entry in loras.loras}
    if refinement is not None:
        recipe = recipe_of(refinement, refinement_digest(refinement))
        concepts, moments = refinement.concepts, refinement.moments
        bare = [c.target for c in concepts if normalised(c.target) not in by_name]
        if bare:
            lines.append(f"refined only, for they have no LoRA: {', '.join(bare)}")
        held = {normalised(c.target) for c in concepts}
        unused = [entry.concept.target for name, entry in by_name.items() if name not in held]
        if unused:
            lines.append(f"left out, for the refinement does not hold them: {', '.join(unused)}")
        if len(unused) == len(by_name):
            raise LoraSetError("no LoRA is of a concept that the refinement holds: connect LoRAs trained on it")
    elif loras.recipe is None:
        raise LoraSetError("these LoRAs bring no refinement along: connect CFR Refine's refinement")
    else:
        recipe, concepts = loras.recipe, loras.concepts
        moments = _moments(loras, recipe, text, lines, progress)
    if recipe.pooled and any(entry.pooled is None for entry in moments):
        raise LoraSetError("the refinement covers the pooled text, and not all moments have it: connect the CLIP")
    entries = [by_name.get(normalised(concept.target)) for concept in concepts]
    present = [(c, entry) for c, entry in zip(concepts, entries, strict=True) if entry is not None]
    changed = [c.target for c, entry in present if c != entry.concept]
    if changed:
        lines.append(f"trained with another mapping, other aliases or prompts: {', '.join(changed)}")
    elsewhere = [c.target for c, entry in present if entry.refined_on != recipe.digest and c.target not in changed]
    if elsewhere:
        lines.append(f"trained on the refinement of another list: {', '.join(elsewhere)}")
    return Parts(
        concepts,
        moments,
        tuple({} if entry is None else entry.lora for entry in entries),
        tuple({} if entry is None else dict(entry.settings) for entry in entries),
        recipe,
    )


def _moments(loras: LoraSet, recipe: Recipe, text: Text | None, lines: list[str], progress: Progress) -> Moments:
    missing = [entry.concept for entry in loras.loras if not _has_moments(entry, recipe)]
    if not missing:
        return collect_moments(entry.moments for entry in loras.loras)
    names = ", ".join(concept.target for concept in missing[:5])
    if text is None:
        raise LoraSetError(f"the moments of {names} are not at hand: connect the CLIP that the LoRAs were trained with")
    distance = probe_distance(text.fingerprint, recipe.fingerprint)
    if not distance <= PROBE_TOLERANCE:  # also when it is not a number
        raise LoraSetError(
            f"the LoRAs were trained with another text encoder or another clip skip (distance {distance:.3g}): connect "
            "that CLIP"
        )
    prompts = sum(len(concept.readings) for concept in missing)
    lines.append(f"the moments of {len(missing)} concepts were read from {prompts} prompts")
    step = progress.begin(prompts)
    return text.gather(
        entry.moments
        if _has_moments(entry, recipe)
        else text.moments(entry.concept, step, recipe.pooled, recipe.own_words)
        for entry in loras.loras
    )


def _has_moments(entry: ErasureLora, recipe: Recipe) -> bool:
    return entry.moments is not None and (entry.moments.pooled is not None or not recipe.pooled)


def choose_prior(
    recipe: Recipe,
    erased: Sequence[Concept],
    prior: Prior | None,
    text: Text | None,
    captions: bool,
    lines: list[str],
    progress: Progress,
) -> Prior | None:
    """The prior to fuse with: the one given, else the refinement's own, without what contradicts the list.

    erased: those of the concepts that have a strength.  text: None where none is connected.  captions: whether the
    prior's captions count. Raises LoraSetError where the prior is missing, and ValueError where it preserves what is to
    be erased and cannot step aside.
    """
    chosen = _own_or_given(recipe, prior, lines)
    if chosen is None:
        return None
    if text is not None:
        chosen = step_aside(chosen, erased, text, captions, lines, progress)
    elif captions and chosen.texts is not None:
        held = len(named_captions(chosen, phrases_by_key(erased).values()))
        if held:
            lines.append(
                f"{held} captions of the prior name what is erased: connect the CLIP, so that they are taken out"
            )
    check_preserved(erased, chosen)
    if captions and chosen.mean is not None:
        lines += held_names(erased, chosen)
    return chosen


def _own_or_given(recipe: Recipe, prior: Prior | None, lines: list[str]) -> Prior | None:
    if prior is not None:
        prior.check(recipe.fingerprint)
        return prior
    if recipe.prior is None and recipe.prior_source is not None and (recipe.weights.lambda1 or recipe.weights.lambda3):
        raise LoraSetError(
            f"the LoRAs were trained on a refinement with a prior ({recipe.prior_source}): connect it, or save the set "
            "with its moments"
        )
    if recipe.prior is not None:
        lines.append(f"prior: the refinement's ({recipe.prior.source})")
    return recipe.prior


def whole_prior(recipe: Recipe, text: Text | None, captions: bool, lines: list[str]) -> Prior | None:
    """The refinement's prior before it stepped aside, for a list of which some have strength 0: what those alone took
    out of it counts again. None where it is not at hand, which is said; text and captions as for `choose_prior`."""
    if text is not None and recipe.whole_prior is not None:
        return recipe.whole_prior
    if captions and recipe.prior is not None and recipe.prior.stepped_aside[0]:
        lines.append(
            f"the {recipe.prior.stepped_aside[0]} captions that were taken out of the prior stay out, also those that "
            "name only what has strength 0: connect the CLIP and the prior, so that these count again"
        )
    return None


def choose_weights(recipe: Recipe, lambda2: str, lambda3: str, mu: str, pull: str) -> tuple[FuseWeights, list[str]]:
    """The weights of Eq. 7; auto takes those of the refinement (Table 10 has lambda2 = lambda1)."""
    usual = recipe.weights
    values, lines = read_weights(
        ("lambda2", lambda2, usual.lambda1), ("lambda3", lambda3, usual.lambda3), ("mu", mu, usual.mu)
    )
    weights = FuseWeights(*values, TOWARDS[pull])
    return weights, lines if weights.pull == TO_REFINED else [*lines, f"pull: {pull}"]


def check_base(model: Weights) -> None:
    """Raise LoraSetError for a model that CFR Refine gave."""
    if model.refinement is not None:
        raise LoraSetError("erasure starts from the original model: connect the MODEL from before CFR Refine")


def fused_model(
    model: Weights,
    text: Text | None,
    progress: Progress,
    loras: LoraSet,
    refinement: Refinement | None,
    prior: Prior | None,
    method: str,
    strengths: str,
    weights: tuple[str, str, str],
    pull: str,
) -> tuple[Weights, list[str], list]:
    """(the fused model, lines for the artist, [target, strength] of every concept).

    text: None where none is at hand.  weights: lambda2, lambda3 and mu as the artist wrote them.
    """
    check_base(model)
    keys = model.tokens()
    lines: list[str] = []
    parts = gather(loras, refinement, text, lines, progress)
    if method == NAIVE:
        chosen, about = None, ["naive sum: lambda2, lambda3, mu and pull play no part"]
    else:
        chosen, about = choose_weights(parts.recipe, *weights, pull)
    counts = bool(parts.recipe.weights.lambda1 or chosen is not None and chosen.lambda2)
    own = strengths_of(strengths, parts.concepts)
    lines += strange_lines(strengths, parts.concepts)
    erased = with_strength(parts.concepts, own)
    if prior is None and len(erased) < len(parts.concepts):
        prior = whole_prior(parts.recipe, text, counts, lines)
    prior = choose_prior(parts.recipe, erased, prior, text, counts, lines, progress)
    if chosen is not None:
        if chosen.lambda2 and (prior is None or prior.mean is None):
            lines.append("lambda2 has no effect: there is no prior with captions")
        if chosen.lambda3 and (prior is None or prior.preserve is None):
            lines.append("lambda3 has no effect: there is no prior with concepts to preserve")
    strange = next((key for lora in parts.loras for key in lora if key not in keys), None)
    if strange is not None:
        raise LoraSetError(f"the LoRAs are of another model: this one has no {strange}")
    scaled = [strength * parts.recipe.strength for strength in own]
    listed = [[concept.target, strength] for concept, strength in zip(parts.concepts, own, strict=True)]
    lines = [*about, *lines, f"{len(parts.concepts)} concepts, {sum(bool(lora) for lora in parts.loras)} LoRAs"]
    weak = [f"{target} {strength:g}" for target, strength in listed if strength < 1]
    if weak:
        lines.append(f"strengths below 1: {', '.join(weak)}")
    if parts.recipe.strength < 1:
        lines.append(f"all times CFR Refine's strength, {parts.recipe.strength:g}")
    if not any(scaled):
        same, _ = model.edited(Edit(), progress.begin(0))
        return same, [*lines, "all strengths are 0: the model is as it was"], listed
    moments = (prior.general_moment(), prior.preserve_moment()) if prior else (None, None)
    how = parts.recipe.weights
    given = (*moments, scaled, model.device, reading(model, how.metric))
    if method == NAIVE:
        fusion = naive(parts.loras, solve_refinement(parts.moments, how, *given), scaled)
    else:
        fusion = fuse(parts.moments, parts.loras, how, chosen, *given)
    refined = set(model.tokens(parts.recipe.projections))
    touched = [key for key in keys if key in refined or key in fusion]
    ports = model.pooled if parts.recipe.pooled else ()
    if ports:
        # No LoRA reads the pooled text, so that its fusion is its refinement.
        pooled = solve_pooled(model, ports[0], parts.moments, how, prior, scaled)
        touched += ports

    def change(key: str, weight: Tensor) -> Tensor:
        return pooled_weight_delta(weight, pooled) if key in ports else fusion.delta(key, weight, key in refined)

    edit = Edit(tuple(touched), change, record=stage_record(parts, prior, method, own, chosen))
    fused, notes = model.edited(edit, progress.begin(len(touched)))
    return fused, [*lines, f"{len(touched)} matrices", *notes], listed


def stage_record(
    parts: Parts, prior: Prior | None, method: str, strengths: Sequence[float], weights: FuseWeights | None
) -> dict:
    """A fusion as it stands in a saved checkpoint's provenance, with the refinement and training before it.

    weights: None for the naive sum, which has none.
    """
    recipe = parts.recipe
    return {
        "stage": "fusion",
        "method": method,
        "concepts": [
            {**concept_record(concept), "strength": strength, "training": training or None}
            for concept, strength, training in zip(parts.concepts, strengths, parts.settings, strict=True)
        ],
        "weights": None if weights is None else asdict(weights),
        "clip_layer": recipe.clip_layer,
        "refinement": {
            "settings": dict(recipe.settings),
            "lambda1": recipe.weights.lambda1,
            "lambda3": recipe.weights.lambda3,
            "mu": recipe.weights.mu,
            "metric": recipe.weights.metric,
            "strength": recipe.strength,
            "projections": recipe.projections,
            "pooled_text": recipe.pooled,
            "own_words": recipe.own_words,
        },
        "prior": prior_record(prior),
    }
