"""A set of erasure LoRAs as one safetensors file: tensors, and metadata whose values are JSON."""

import json
from collections.abc import Mapping
from dataclasses import asdict

import torch
from torch import Tensor

from ..concepts.concept import Concept, normalised
from ..method.moments import ConceptMoments, packed_width
from ..method.prior import Prior, PriorError
from .lora_reading import layout_of
from .lora_set import ErasureLora, LoraSet, LoraSetError, Recipe
from .prior_file import prior_from_file, prior_to_file
from .records import (
    BASE_RECORD,
    BLOCKS,
    LORAS,
    RECIPE,
    ConceptRecord,
    LoraRecord,
    MomentsRecord,
    RecipeRecord,
    read_record,
)

FORMAT = "mace-erasure-loras-1"
_FAMILY = FORMAT.rpartition("-")[0] + "-"

# The same names in the files of other programs, so that an import knows what a LoRA erases.
CONCEPT_KEY, REFINED_ON_KEY = "mace.concept", "mace.refined_on"

_PRIOR, _POOLED = "prior.", "pooled."
_MOMENTS = ("cross", "paired", "total")


def set_to_file(lora_set: LoraSet, with_moments: bool) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a set's safetensors file.

    with_moments: also every concept's moments, where they are at hand, and the recipe's prior (9.4 MB a concept of
    SD1.x): fusing then needs neither text encoder nor prior. Tensors are the set's own where they can be.
    """
    tensors: dict[str, Tensor] = {}
    listed = []
    for i, erasure in enumerate(lora_set.loras):
        for key, (up, down) in erasure.lora.items():
            tensors[f"{i}.up.{key}"], tensors[f"{i}.down.{key}"] = up, down
        tensors[f"{i}.losses"] = erasure.losses
        moments = erasure.moments if with_moments else None
        pooled = moments.pooled if moments else None
        for prefix, part in (("", moments), (_POOLED, pooled)):
            for name in _MOMENTS if part else ():
                tensors[f"{i}.{prefix}{name}"] = getattr(part, name)
        listed.append(
            {
                "concept": asdict(erasure.concept),
                "prompts": erasure.concept.prompts,
                "projections": list(erasure.lora),
                "settings": dict(erasure.settings),
                "refined_on": erasure.refined_on,
                "moments": {"pairs": moments.pairs, "prompts": moments.prompts} if moments else None,
            }
        )
    metadata = {
        "format": FORMAT,
        "loras": _dumps(listed),
        "blocks": _dumps(lora_set.blocks),
        "base": _dumps(asdict(lora_set.base) if lora_set.base else None),
        "recipe": _dumps(_recipe_to_json(lora_set.recipe)),
    }
    if lora_set.recipe is not None:
        tensors["fingerprint"] = lora_set.recipe.fingerprint
        if with_moments and lora_set.recipe.prior is not None:
            prior_tensors, prior_metadata = prior_to_file(lora_set.recipe.prior)
            tensors |= {_PRIOR + name: tensor for name, tensor in prior_tensors.items()}
            metadata |= {_PRIOR + name: value for name, value in prior_metadata.items()}
    places: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        # Such as a fingerprint that is the prior's too: the file format asks for tensors of their own.
        tensors[name] = plain.clone() if plain.data_ptr() in places else plain
        places.add(tensors[name].data_ptr())
    return tensors, metadata


def set_from_file(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> LoraSet:
    """The set of a file's tensors and metadata; a file without moments gives a set without them.

    Prompts that are no longer those of this version are passed over (see `changed_prompts`). Raises LoraSetError for
    another kind of file, a later version's and a damaged one, naming what is wrong with it.
    """
    _check_format(tensors, metadata)
    try:
        return _read(tensors, metadata)
    # KeyError: a tensor or an entry that is not there.
    except (KeyError, ValueError) as error:
        what = f"{error.args[0]} is missing" if isinstance(error, KeyError) else error
        raise LoraSetError(f"the file of erasure LoRAs is damaged: {what}; save the set again") from None


def changed_prompts(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """The targets whose prompts, as the file has them, are not those that this version reads the concept in.

    Moments that are computed anew are then not the ones that the LoRAs were trained with. metadata: of a file that
    `set_from_file` reads.
    """
    entries = read_record(LORAS, metadata["loras"], "loras")
    return tuple(e.concept.target for e in entries if e.concept.made().prompts != e.prompts)


def concept_metadata(erasure: ErasureLora) -> dict[str, str]:
    """What the file of one concept's LoRA in another program's layout says of it."""
    metadata = {CONCEPT_KEY: _dumps(asdict(erasure.concept))}
    return metadata | ({REFINED_ON_KEY: erasure.refined_on} if erasure.refined_on else {})


def concept_of(metadata: Mapping[str, str]) -> Concept | None:
    """The concept of such a file, None where it names none or none that can be read."""
    try:
        return read_record(ConceptRecord, metadata[CONCEPT_KEY], CONCEPT_KEY).made()
    except (KeyError, ValueError):
        return None


def _check_format(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    found = metadata.get("format", "")
    if found == FORMAT:
        return
    if found.startswith(_FAMILY):
        said = f"this set was saved by another version of the pack ({found:.60})"
        raise LoraSetError(f"{said}; update the pack to read it")
    try:
        layout = layout_of(tensors)
    except ValueError:
        raise LoraSetError("this file is no set of erasure LoRAs; choose one that Save Erasure LoRAs wrote") from None
    raise LoraSetError(f"this file is one LoRA in {layout}'s layout, no set; read it with Import LoRA as Erasure LoRA")


def _read(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> LoraSet:
    listed = read_record(LORAS, metadata["loras"], "loras")
    blocks = read_record(BLOCKS, metadata["blocks"], "blocks")
    base = read_record(BASE_RECORD, metadata["base"], "base")
    recipe = _recipe(read_record(RECIPE, metadata["recipe"], "recipe"), tensors, metadata)
    loras = tuple(_erasure(i, entry, tensors) for i, entry in enumerate(listed))
    owners: dict[str, str] = {}
    widths = {"the text encoder's fingerprint": recipe.fingerprint.shape[-1]} if recipe else {}
    for erasure in loras:
        target = erasure.concept.target
        for phrase in map(normalised, erasure.concept.phrases):
            if owners.setdefault(phrase, target) != target:
                raise LoraSetError(f"{phrase!r} is a phrase of both {owners[phrase]!r} and {target!r}")
        widths[f"the LoRA of {target!r}"] = next(iter(erasure.lora.values()))[1].shape[1]
        if erasure.moments:
            widths[f"the moments of {target!r}"] = erasure.moments.cross.shape[0]
    first, width = next(iter(widths.items()))
    other = next((name for name in widths if widths[name] != width), None)
    if other:
        raise LoraSetError(f"{first} is {width} wide, {other} {widths[other]}")
    return LoraSet(loras, recipe, blocks, base.made() if base is not None else None)


def _erasure(i: int, entry: LoraRecord, tensors: Mapping[str, Tensor]) -> ErasureLora:
    concept = entry.concept.made()
    lora = {}
    for key in entry.projections:
        up, down = _tensor(tensors, f"{i}.up.{key}", 2), _tensor(tensors, f"{i}.down.{key}", 2)
        if up.shape[1] != down.shape[0] or not up.numel() or not down.numel():
            raise LoraSetError(f"{key} of {concept.target!r}: {list(up.shape)} times {list(down.shape)} is no LoRA")
        lora[key] = (up, down)
    widths = {down.shape[1] for _, down in lora.values()}
    if len(widths) > 1:
        raise LoraSetError(f"the LoRA of {concept.target!r} reads embeddings of several widths: {sorted(widths)}")
    moments = _moments(f"{i}.", concept, entry.moments, tensors)
    return ErasureLora(concept, lora, _tensor(tensors, f"{i}.losses", 1), entry.settings, moments, entry.refined_on)


def _moments(
    prefix: str, concept: Concept, entry: MomentsRecord | None, tensors: Mapping[str, Tensor]
) -> ConceptMoments | None:
    if entry is None:
        return None
    cross = _tensor(tensors, f"{prefix}cross", 2, torch.float64)
    paired, total = (_tensor(tensors, f"{prefix}{name}", 1, torch.float64) for name in ("paired", "total"))
    if {*cross.shape} != {packed_width(paired)} or packed_width(total) != packed_width(paired):
        raise LoraSetError(
            f"the moments of {concept.target!r} do not fit each other: {list(cross.shape)}, {len(paired)} and "
            f"{len(total)} elements"
        )
    # One vector a prompt: there is no more to count.
    own = MomentsRecord(pairs=entry.prompts, prompts=entry.prompts)
    pooled = _moments(prefix + _POOLED, concept, own, tensors) if f"{prefix}{_POOLED}cross" in tensors else None
    return ConceptMoments(cross, paired, total, entry.pairs, entry.prompts, pooled)


def _recipe_to_json(recipe: Recipe | None) -> dict | None:
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


def _recipe(entry: RecipeRecord | None, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Recipe | None:
    if entry is None:
        return None
    return Recipe(
        entry.weights.made(),
        entry.strength,
        entry.projections,
        entry.settings,
        _tensor(tensors, "fingerprint", 3),
        entry.clip_layer,
        entry.digest,
        entry.prior_source,
        _prior(tensors, metadata),
        entry.pooled,
        entry.own_words,
        entry.preset,
    )


def _prior(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Prior | None:
    """The prior in the file, None without one. Raises LoraSetError for a damaged one or another text encoder's."""
    entries = {name.removeprefix(_PRIOR): value for name, value in metadata.items() if name.startswith(_PRIOR)}
    if not entries:
        return None
    parts = {name.removeprefix(_PRIOR): tensor for name, tensor in tensors.items() if name.startswith(_PRIOR)}
    try:
        prior = prior_from_file(parts, entries)
    except PriorError as error:
        raise LoraSetError(f"its prior cannot be read ({error})") from None
    if prior.width != tensors["fingerprint"].shape[-1]:
        raise LoraSetError("its prior is of another text encoder than the refinement")
    return prior


def _tensor(tensors: Mapping[str, Tensor], name: str, dim: int, dtype: torch.dtype = torch.float32) -> Tensor:
    tensor = tensors[name]
    if tensor.dim() != dim or tensor.dtype != dtype:
        raise LoraSetError(f"{name} is {tensor.dtype} {list(tensor.shape)}, not {dtype} of {dim} dimensions")
    if not torch.isfinite(tensor).all():
        raise LoraSetError(f"{name} holds values that are not finite (NaN or infinity)")
    return tensor


def _dumps(value) -> str:
    return json.dumps(value, ensure_ascii=False)
