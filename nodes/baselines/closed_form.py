"""Inputs of the baselines that are one closed form, and reading them."""

from collections.abc import Callable, Sequence

import torch
from comfy_api.latest import io

from ...mace.concepts.concept import TYPES, Concept, normalised, parse_concepts, phrases_by_key
from ...mace.concepts.lists import RETENTION
from ...mace.concepts.text import TextError
from ...mace.messages import MessageError
from ...mace.pipeline.batches import chunks
from ...mace.pipeline.prior import keepers
from ..host import files
from ..host.model.unet import PROJECTIONS
from ..host.text import TextEncoder

BY_TYPE, MAPPINGS, NOTHING = "by type", "mappings", "nothing"


def destination_of(concept: Concept, choice: str) -> str:
    """The phrase that a concept is edited to; empty for nothing."""
    if choice == NOTHING or choice == BY_TYPE and concept.type == "explicit":
        return ""
    return concept.mapping


def kept_inputs(nothing: str) -> list:
    """What to preserve, and the lists of it. nothing: what holds without any, as a sentence."""
    return [
        io.String.Input(
            "preserve",
            multiline=True,
            dynamic_prompts=False,
            default="",
            placeholder="concepts to preserve, one a line",
            tooltip=f"Concepts to preserve, one a line; aliases after | are preserved too. {nothing}",
        ),
        io.Combo.Input(
            "retention",
            options=[files.NONE, *RETENTION],
            default=files.NONE,
            tooltip="MACE's lists of concepts to keep (Tables 7 and 9), added to the lines.",
        ),
    ]


def projections_input() -> io.Combo.Input:
    """Which matrices are edited."""
    return io.Combo.Input(
        "projections",
        options=sorted(PROJECTIONS, reverse=True),
        default="values",
        advanced=True,
        tooltip="Which matrices are edited: to_v alone (values), as in the release, to_k (keys), or both.",
    )


def checked_preserve(preserve: str | None) -> bool | str:
    """What validate_inputs answers to the lines to preserve: True, or what is wrong. preserve: None while linked."""
    if preserve is None:
        return True
    try:
        parse_concepts(preserve, TYPES[0], mapped=False, field="preserve")
    except TextError as error:
        return str(error)
    return True


def kept_phrases(preserve: str, retention: str, concepts: Sequence[Concept]) -> list[str]:
    """The phrases to preserve. Raises ValueError for one that is to be erased too."""
    kept = [concept.target for concept in keepers(preserve, TYPES[0], retention, concepts)]
    erased = phrases_by_key(concepts)
    for phrase in kept:
        if normalised(phrase) in erased:
            raise MessageError(f"{phrase!r} is both to be erased and to be preserved; take it out of one list")
    return kept


def last_tokens(
    encoder: TextEncoder, prompts: Sequence[str], device: torch.device, step: Callable[[int], None]
) -> torch.Tensor:
    """The last token's embedding of each prompt, float64 [n, d] on `device`. step(prompts): progress."""
    found = [torch.zeros(0, encoder.width)]
    for part in chunks(prompts):
        embeddings = encoder.encoded(part)
        at = torch.tensor([encoder.length(prompt) for prompt in part], device=embeddings.device)
        found.append(embeddings[torch.arange(len(part), device=embeddings.device), at].cpu())
        step(len(part))
    return torch.cat(found).to(device, torch.float64)
