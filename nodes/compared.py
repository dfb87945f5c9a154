"""A prompt of the artist's before and after, for the page's compare: on the nodes that erase."""

from collections.abc import Sequence

from comfy_api.latest import io, ui

from ..mace.concepts.concept import Concept
from .host.progress import send_text
from .schema import MOST_SEED
from .stages.planning import COMPARED
from .stages.preview import before_and_after

# What a prompt has in place of the first word that is erased.
WORD = "{}"


def read_prompt(text: str, concepts: Sequence[Concept]) -> str:
    """A prompt in one line, the first target in place of WORD; "" for no pictures."""
    return " ".join(text.split()).replace(WORD, concepts[0].target)


def compared_pictures(
    cls: type[io.ComfyNode], base, erased, clip, vae, prompt: str, seed: int, settings: dict
) -> dict[str, list]:
    """What a node's ui holds for the page: the prompt drawn by two MODELs with COMPARED seeds, `seed` the first.

    settings: see `before_and_after`.
    """
    send_text("drawing before and after")
    seeds = [(seed + number) % (MOST_SEED + 1) for number in range(COMPARED)]
    drawn = before_and_after(base, erased, clip, vae, prompt, seeds, settings)
    return {
        name: ui.PreviewImage(images, cls=cls).as_dict()["images"]
        for name, images in zip(("a_images", "b_images"), drawn, strict=True)
    }
