"""Mask Concept: where the concept stands in its training images."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from comfy.utils import ProgressBar
from comfy_api.latest import io, ui
from torch import Tensor

from ..mace.images import ConceptImages
from ..mace.masks import mask_of_map
from ..mace.tokens import fill
from .attention_maps import concept_maps
from .images import SHOWN
from .text import TextEncoder
from .types import CATEGORY, ImagesType

ATTENTION, EXTERNAL, WHOLE = "attention", "external mask", "whole image"
TINT = (1.0, 0.25, 0.1)


def attention_masks(model, encoder: TextEncoder, images: ConceptImages) -> Tensor:
    """Masks [n, H, W] from the model's own cross-attention to the concept's tokens, cut by Otsu's threshold."""
    target = images.concept.target
    prompt = fill(images.template, target)
    positions = encoder.pair(images.template, target, images.concept.mapping).phrase
    pooled = encoder.pooled([prompt]) if encoder.has_pooled(model) else None
    maps = concept_maps(model, images.latents, encoder.encode([prompt])[0], positions, pooled, target)
    return mask_of_map(maps, *images.pictures.shape[1:3])


def whole_image(images: ConceptImages) -> Tensor:
    """Masks [n, H, W] of ones."""
    return torch.ones(images.pictures.shape[:3])


# What finds a concept in its images: (model, encoder, images of one concept) -> masks [n, H, W] in 0..1.
BACKENDS: dict[str, Callable[..., Tensor]] = {
    ATTENTION: attention_masks,
    WHOLE: lambda model, encoder, images: whole_image(images),
}


def fitted(mask: Tensor, images: Sequence[ConceptImages]) -> list[Tensor]:
    """An external MASK [N or 1, h, w] as masks [n, H, W] for each concept's images, in their order.

    Raises ValueError for another number of masks than images.
    """
    mask = mask.reshape(-1, *mask.shape[-2:])
    total = sum(len(entry) for entry in images)
    if len(mask) not in (1, total):
        raise ValueError(
            f"there are {len(mask)} masks for {total} images: connect the pictures output of Concept Images to the "
            "node that makes the masks, so that there is one for each image, in the same order"
        )
    height, width = images[0].pictures.shape[1:3]
    mask = mask.float().expand(total, -1, -1)
    if mask.shape[1:] != (height, width):
        mask = F.interpolate(mask[:, None], (height, width), mode="bilinear", align_corners=False)[:, 0]
    return list(mask.clamp(0, 1).to("cpu").split([len(entry) for entry in images]))


def no_empty(masks: Tensor, images: ConceptImages) -> tuple[Tensor, list[str]]:
    """The masks, the whole image in place of an empty one, and a line for the artist on each concept with such."""
    filled = masks.flatten(1).amax(dim=1) > 0
    if filled.all():
        return masks, []
    whole = torch.where(filled.view(-1, 1, 1), masks, torch.ones_like(masks))
    count = int((~filled).sum())
    return whole, [f"{images.concept.target}: {count} of {len(masks)} masks were empty; the whole image is used there"]


def make_masks(
    model, clip, images: Sequence[ConceptImages], backend: str, external: Tensor | None = None
) -> tuple[list[Tensor], list[str]]:
    """Masks [n, H, W] of each concept's images, and lines for the artist. Styles take the whole image.

    Raises ValueError for external masks that are not there or do not fit.
    """
    progress = ProgressBar(len(images))
    lines, masks, encoder = [], [], None
    if backend == EXTERNAL:
        if external is None:
            raise ValueError("the back-end is external mask and the mask input is empty: connect a MASK")
        given = fitted(external, images)
    elif backend == ATTENTION and any(entry.concept.type != "style" for entry in images):
        encoder = TextEncoder(clip)
        encoder.check_width(model)
    for place, entry in enumerate(images):
        if backend == EXTERNAL:
            made = given[place]
        elif entry.concept.type == "style":
            made = whole_image(entry)
        else:
            made = BACKENDS[backend](model, encoder, entry)
        made, warning = no_empty(made, entry)
        masks.append(made)
        share = float(made.mean())
        lines += [f"{entry.concept.target}: {share:.0%} of the image", *warning]
        progress.update(1)
    return masks, lines


def overlay(pictures: Tensor, masks: Tensor) -> Tensor:
    """Pictures [n, H, W, 3] with what is masked [n, H, W] tinted, and the rest faded."""
    tint = torch.tensor(TINT)
    inside = 0.6 * pictures + 0.4 * tint
    outside = 0.5 * pictures + 0.5
    return torch.lerp(outside, inside, masks[..., None])


class MaskConcept(io.ComfyNode):
    """One mask for each training image."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MACE_MaskConcept",
            display_name="Mask Concept (MACE)",
            category=CATEGORY,
            description="Finds each concept in its training images. attention needs no other model: it looks where "
            "the model itself looks for the concept's words.",
            search_aliases=["mace", "segment", "mask", "attention", "daam"],
            inputs=[
                io.Model.Input("model", tooltip="The model that drew the images, before CFR Refine."),
                io.Clip.Input("clip", tooltip="Its text encoder."),
                ImagesType.Input("images", tooltip="From Concept Images."),
                io.Combo.Input(
                    "backend",
                    options=[ATTENTION, EXTERNAL, WHOLE],
                    default=ATTENTION,
                    tooltip="attention: the model's own cross-attention, cut by Otsu's threshold. external mask: the "
                    "MASK connected below. whole image: no mask. Styles always take the whole image, except with "
                    "external masks.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Masks of any node (SAM3 Detect, Impact, hand-drawn), one for each picture in the order of "
                    "Concept Images' pictures, or one for all. Used by the back-end external mask.",
                ),
            ],
            outputs=[
                io.Mask.Output("masks", tooltip="One for each image, in order, 1 where the concept is."),
                io.Image.Output("overlay", tooltip="The pictures with the masks laid over."),
            ],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(cls, model, clip, images, backend, mask=None) -> io.NodeOutput:
        masks, lines = make_masks(model, clip, images, backend, mask)
        joined = torch.cat(masks)
        shown = overlay(torch.cat([entry.as_image for entry in images]), joined)
        preview = ui.PreviewImage(shown[:SHOWN], cls=cls).as_dict()
        return io.NodeOutput(joined, shown, ui={**preview, "text": ("\n".join(lines),)})
