"""A set of erasure LoRAs as one safetensors file: tensors, and metadata whose values are JSON."""

from collections.abc import Mapping
from dataclasses import asdict

from torch import Tensor

from ..concepts.concept import Concept, normalised
from .lora_reading import layout_of
from .lora_set import ErasureLora, LoraSet, LoraSetError
from .moments_file import checked, moments_of, moments_tensors
from .recipe_file import add_prior, own_places, recipe_from_file, recipe_to_json
from .records import BASE_RECORD, BLOCKS, LORAS, ConceptRecord, LoraRecord, dumps, read_record

FORMAT = "mace-erasure-loras-1"
_FAMILY = FORMAT.rpartition("-")[0] + "-"

# The same names in the files of other programs, so that an import knows what a LoRA erases.
CONCEPT_KEY, REFINED_ON_KEY = "mace.concept", "mace.refined_on"


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
        tensors |= moments_tensors(f"{i}.", moments)
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
        "loras": dumps(listed),
        "blocks": dumps(lora_set.blocks),
        "base": dumps(asdict(lora_set.base) if lora_set.base else None),
        "recipe": dumps(recipe_to_json(lora_set.recipe)),
    }
    if lora_set.recipe is not None:
        tensors["fingerprint"] = lora_set.recipe.fingerprint
        if with_moments and lora_set.recipe.prior is not None:
            add_prior(lora_set.recipe.prior, tensors, metadata)
    return own_places(tensors), metadata


def set_from_file(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], later: bool = False) -> LoraSet:
    """The set of a file's tensors and metadata; a file without moments gives a set without them.

    later: moments are looked at one concept at a time and read again from `tensors` each time they are asked for, so
    that a long list's are never in memory together (see `FileMoments`). Prompts that are no longer those of this
    version are passed over (see `changed_prompts`). Raises LoraSetError for another kind of file, a later version's and
    a damaged one, naming what is wrong with it.
    """
    _check_format(tensors, metadata)
    try:
        return _read(tensors, metadata, later)
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
    metadata = {CONCEPT_KEY: dumps(asdict(erasure.concept))}
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


def _read(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], later: bool) -> LoraSet:
    listed = read_record(LORAS, metadata["loras"], "loras")
    blocks = read_record(BLOCKS, metadata["blocks"], "blocks")
    base = read_record(BASE_RECORD, metadata["base"], "base")
    recipe = recipe_from_file(tensors, metadata)
    loras = tuple(_erasure(i, entry, tensors, later) for i, entry in enumerate(listed))
    owners: dict[str, str] = {}
    widths = {"the text encoder's fingerprint": recipe.fingerprint.shape[-1]} if recipe else {}
    for erasure in loras:
        target = erasure.concept.target
        for phrase in map(normalised, erasure.concept.phrases):
            if owners.setdefault(phrase, target) != target:
                raise LoraSetError(f"{phrase!r} is a phrase of both {owners[phrase]!r} and {target!r}")
        widths[f"the LoRA of {target!r}"] = next(iter(erasure.lora.values()))[1].shape[1]
        if erasure.moments:
            widths[f"the moments of {target!r}"] = erasure.moments.width
    first, width = next(iter(widths.items()))
    other = next((name for name in widths if widths[name] != width), None)
    if other:
        raise LoraSetError(f"{first} is {width} wide, {other} {widths[other]}")
    return LoraSet(loras, recipe, blocks, base.made() if base is not None else None)


def _erasure(i: int, entry: LoraRecord, tensors: Mapping[str, Tensor], later: bool) -> ErasureLora:
    concept = entry.concept.made()
    lora = {}
    for key in entry.projections:
        up, down = checked(tensors, f"{i}.up.{key}", 2), checked(tensors, f"{i}.down.{key}", 2)
        if up.shape[1] != down.shape[0] or not up.numel() or not down.numel():
            raise LoraSetError(f"{key} of {concept.target!r}: {list(up.shape)} times {list(down.shape)} is no LoRA")
        lora[key] = (up, down)
    widths = {down.shape[1] for _, down in lora.values()}
    if len(widths) > 1:
        raise LoraSetError(f"the LoRA of {concept.target!r} reads embeddings of several widths: {sorted(widths)}")
    moments = moments_of(f"{i}.", concept, entry.moments, tensors, later)
    return ErasureLora(concept, lora, checked(tensors, f"{i}.losses", 1), entry.settings, moments, entry.refined_on)
