"""The refinement that LoRAs are trained on, in files: its recipe beside them, or all of it but its moments."""

from collections.abc import Mapping
from dataclasses import asdict

import torch
from torch import Tensor

from ..concepts.concept import ConceptList
from ..messages import MessageError
from ..method.prior import Prior, PriorError
from ..method.refine import LowRank, Refinement
from .lora_set import LoraSetError, Recipe, recipe_of, refinement_digest
from .moments_file import checked
from .prior_file import prior_from_file, prior_to_file
from .records import RECIPE, RecipeRecord, dumps, read_record

REFINEMENT_FORMAT = "mace-refinement-1"

_PRIOR = "prior."


class RefinementError(MessageError):
    """A refinement that a file should hold and does not."""


def recipe_to_json(recipe: Recipe | None) -> dict | None:
    """A recipe's record, without its fingerprint and prior."""
    if recipe is None:
        return None
    return {
        "weights": asdict(recipe.weights),
        "strength": recipe.strength,
        "projections": recipe.projections,
        "settings": dict(recipe.settings),
        "clip_layer": recipe.clip_layer,
        "digest": recipe.digest,
        "prior_source": recipe.prior_source,
        "pooled": recipe.pooled,
        "own_words": recipe.own_words,
        "preset": recipe.preset,
    }


def recipe_from_file(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Recipe | None:
    """The recipe of a file's record, with the fingerprint and the prior that lie beside it; None where it has none.

    Raises RecordError, MomentsError, LoraSetError or KeyError for a broken one.
    """
    entry: RecipeRecord | None = read_record(RECIPE, metadata["recipe"], "recipe")
    if entry is None:
        return None
    return Recipe(
        entry.weights.made(),
        entry.strength,
        entry.projections,
        entry.settings,
        checked(tensors, "fingerprint", 3),
        entry.clip_layer,
        entry.digest,
        entry.prior_source,
        _prior(tensors, metadata),
        entry.pooled,
        entry.own_words,
        entry.preset,
    )


def add_prior(prior: Prior, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Put a prior beside a recipe."""
    prior_tensors, prior_metadata = prior_to_file(prior)
    tensors |= {_PRIOR + name: tensor for name, tensor in prior_tensors.items()}
    metadata |= {_PRIOR + name: value for name, value in prior_metadata.items()}


def _prior(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Prior | None:
    """The prior in the file, None without one. Raises LoraSetError for a damaged one or another text encoder's."""
    entries = {name.removeprefix(_PRIOR): value for name, value in metadata.items() if name.startswith(_PRIOR)}
    if not entries:
        return None
    parts = {name.removeprefix(_PRIOR): tensors[name] for name in tensors if name.startswith(_PRIOR)}
    try:
        prior = prior_from_file(parts, entries)
    except PriorError as error:
        raise LoraSetError(f"its prior cannot be read ({error})") from None
    if prior.width != tensors["fingerprint"].shape[-1]:
        raise LoraSetError("its prior is of another text encoder than the refinement")
    return prior


def own_places(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as a file takes them: on the CPU, none in the place of another."""
    found: dict[str, Tensor] = {}
    places: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        # Such as a fingerprint that is the prior's too.
        found[name] = plain.clone() if plain.data_ptr() in places else plain
        places.add(found[name].data_ptr())
    return found


def refinement_to_file(refinement: Refinement) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a Refinement without its concepts and moments: what training on it needs.

    Raises RefinementError for one of several texts: no LoRA is trained for such a model.
    """
    if refinement.other_deltas:
        raise RefinementError("this refinement is of several texts, and training on it is of none")
    recipe = recipe_of(refinement, refinement_digest(refinement))
    metadata = {"format": REFINEMENT_FORMAT, "recipe": dumps(recipe_to_json(recipe))}
    tensors = {"fingerprint": recipe.fingerprint}
    delta = refinement.transform_delta
    tensors |= {"left": delta.left, "right": delta.right} if isinstance(delta, LowRank) else {"delta": delta}
    if refinement.pooled_delta is not None:
        tensors["pooled_delta"] = refinement.pooled_delta
    if recipe.prior is not None:
        add_prior(recipe.prior, tensors, metadata)
    return own_places(tensors), metadata


def refinement_from_file(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Refinement:
    """A Refinement of no concepts, as `refinement_to_file` wrote it. Raises ValueError or KeyError for a broken one."""
    if metadata.get("format") != REFINEMENT_FORMAT:
        raise RefinementError("this file holds no refinement (or a later version's)")
    recipe = recipe_from_file(tensors, metadata)
    if recipe is None:
        raise RefinementError("its recipe is missing")
    if "left" in tensors:
        delta = LowRank(*(checked(tensors, name, 2, tensors["left"].dtype) for name in ("left", "right")))
    else:
        delta = checked(tensors, "delta", 2, torch.float64)
    pooled = checked(tensors, "pooled_delta", 2, torch.float64) if "pooled_delta" in tensors else None
    found = Refinement(
        ConceptList((), recipe.preset), (), recipe.prior, recipe.weights, recipe.strength, recipe.projections,
        recipe.settings, delta, recipe.fingerprint, recipe.clip_layer, pooled, recipe.own_words,
    )  # fmt: skip
    if refinement_digest(found) != recipe.digest:
        raise RefinementError("its transform is not the one that it names")
    return found
