"""Mask Concept: where the concept stands in its training images."""

from collections.abc import Sequence

import numpy as np
import torch
from comfy_api.latest import io, ui
from PIL import Image, ImageDraw
from torch import Tensor

from ...mace.concepts.phrases import parse_phrases
from ...mace.masks.boxes import ALL, CHOICES
from ...mace.masks.kept import as_floats
from ...mace.masks.maps import COMBINED, UNION
from ..host.detectors.found import Found
from ..host.detectors.model_files import AUTO
from ..host.detectors.tools import GROUNDED, TRANSFORMERS, detector_names, segmenter_names
from ..host.kept.on_disk import written
from ..lists import all_masks, joined_boxes, joined_images, takes_lists
from ..schema import ERASE, SHOWN, ImagesType
from ..stages.mask_making import ATTENTION, BOXES, EXTERNAL, NOTHING_FOUND, WHOLE, MaskSettings, make_masks

BACKENDS = (ATTENTION, GROUNDED, TRANSFORMERS, BOXES, EXTERNAL, WHOLE)
TINT = (1.0, 0.25, 0.1)
FRAME = (30, 90, 255)


def overlay(pictures: Tensor, masks: Tensor) -> Tensor:
    """Pictures [n, H, W, 3] with what is masked [n, H, W] tinted, and the rest faded."""
    tint = torch.tensor(TINT)
    inside = 0.6 * pictures + 0.4 * tint
    outside = 0.5 * pictures + 0.5
    return torch.lerp(outside, inside, masks[..., None])


def with_boxes(pictures: Tensor, found: Sequence[Found | None]) -> Tensor:
    """Pictures [n, H, W, 3] with what was found in each framed, with its score (and its label, where there is one)."""
    drawn = pictures.clone()
    for place, seen in enumerate(found):
        if not seen:
            continue
        canvas = Image.fromarray((pictures[place].clamp(0, 1) * 255).round().to(torch.uint8).numpy())
        pen = ImageDraw.Draw(canvas)
        # The best last, so that it lies on top.
        for box, score, label in reversed(
            list(zip(seen.boxes.tolist(), seen.scores.tolist(), seen.labels, strict=True))
        ):
            left, top, right, bottom = box
            pen.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=FRAME)
            # Boxes of other nodes may have no score, which then is 1.
            said = label if score == 1 else f"{score:.2f} {label}"
            pen.text((left + 2, top + 1), said.strip(), fill=FRAME)
        drawn[place] = torch.from_numpy(np.asarray(canvas).copy()).float() / 255
    return drawn


def _choice_inputs() -> list:
    return [
        io.Combo.Input(
            "choice",
            options=list(CHOICES),
            default=ALL,
            tooltip="all masks every one that is found in a picture; best only the surest, where others are mistakes.",
        ),
        io.Combo.Input(
            "combine",
            options=list(COMBINED),
            default=UNION,
            tooltip="union masks all things found; largest leaves small ones beside it as they are.",
        ),
    ]


def _grounded_option(backend: str, detector: str, segmenter: str) -> io.DynamicCombo.Option:
    return io.DynamicCombo.Option(
        backend,
        [
            io.Combo.Input(
                "detector",
                options=detector_names(backend),
                default=AUTO,
                tooltip=f"{detector} auto: the published one, or the first there is. Not needed where boxes are "
                "connected.",
            ),
            io.Combo.Input(
                "segmenter",
                options=segmenter_names(backend),
                default=AUTO,
                tooltip=f"{segmenter} auto: the published one, or the first there is. none: each box is filled.",
            ),
            io.String.Input(
                "phrase",
                multiline=True,
                dynamic_prompts=False,
                default="",
                placeholder="(the concept itself; for people a face)\nTom Cruise = man",
                tooltip="Finds something else than the concept's name says. Empty: the concept's own words, or for "
                "the type celebrity face and for explicit person, since detectors know kinds of things. A line "
                "without = is for all concepts. Full stops or commas part several things.",
            ),
            io.Float.Input(
                "box_threshold",
                default=0.3,
                min=0.0,
                max=1.0,
                step=0.01,
                tooltip="Lower finds more, and takes more for the concept that is not. The least score of a box.",
            ),
            io.Float.Input(
                "text_threshold",
                default=0.25,
                min=0.0,
                max=1.0,
                step=0.01,
                tooltip="Lower shows more words beside each box in the overlay; the masks stay the same. The least "
                "score of a word in a box's label.",
            ),
            *_choice_inputs(),
        ],
    )


class MaskConcept(io.ComfyNode):
    """One mask for each training image."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MACE_MaskConcept",
            display_name="Mask Concept (MACE)",
            category=ERASE,
            description="Finds each concept in its training images. attention needs no other model: it looks where "
            "the model itself looks for the concept's words. Detectors find by words and cut out what they found.",
            search_aliases=["mace", "segment", "mask", "attention", "daam", "groundingdino", "sam", "detect"],
            inputs=[
                io.Model.Input("model", tooltip="The model that drew the images, before CFR Refine."),
                io.Clip.Input("clip", tooltip="Its text encoder."),
                ImagesType.Input("images", tooltip="From Concept Images."),
                io.DynamicCombo.Input(
                    "backend",
                    options=[
                        io.DynamicCombo.Option(ATTENTION, []),
                        _grounded_option(
                            GROUNDED,
                            "GroundingDINO's weights in models/grounding-dino.",
                            "SAM's weights (vit_b, vit_l, vit_h) in models/sams.",
                        ),
                        _grounded_option(
                            TRANSFORMERS,
                            "A GroundingDINO or MM-GroundingDINO folder in models/grounding-dino.",
                            "A SAM or SAM 2 folder in models/sams.",
                        ),
                        io.DynamicCombo.Option(BOXES, _choice_inputs()),
                        io.DynamicCombo.Option(EXTERNAL, []),
                        io.DynamicCombo.Option(WHOLE, []),
                    ],
                    tooltip="Training changes what the mask covers and leaves the rest. attention: rough, needs "
                    "nothing more: the model's own cross-attention, cut by Otsu's threshold. GroundingDINO + SAM, "
                    "transformers: exact outlines, found by words; they need packages and weights. boxes: the boxes "
                    "connected below, filled. external mask: the MASK connected below. whole image: no mask. Styles "
                    "always take the whole image, except with external masks.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Masks of any node (SAM3 Detect, Impact, hand-drawn), as a batch or a list, one for each "
                    "picture in the order of Concept Images' pictures, or one for all. Used by external mask.",
                ),
                io.BoundingBox.Input(
                    "boxes",
                    optional=True,
                    force_input=True,
                    tooltip="Boxes of any node, in place of a detector's: for all pictures, or a list for each. Used "
                    "by boxes, GroundingDINO + SAM and transformers.",
                ),
                io.Int.Input(
                    "grow",
                    optional=True,
                    default=0,
                    min=-512,
                    max=512,
                    advanced=True,
                    tooltip="Larger takes in the concept's edge and shadow; below 0 shrinks the masks. In pixels.",
                ),
                io.Int.Input(
                    "feather",
                    optional=True,
                    default=0,
                    min=0,
                    max=512,
                    advanced=True,
                    tooltip="Soften the masks' edges over so many pixels. Training cuts masks at one half.",
                ),
                io.Float.Input(
                    "min_area",
                    optional=True,
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.001,
                    round=0.0001,
                    advanced=True,
                    tooltip="Higher leaves out small things that were found by mistake. The least share of the "
                    "picture, 0 to 1.",
                ),
                io.Combo.Input(
                    "nothing_found",
                    optional=True,
                    options=list(NOTHING_FOUND),
                    default=WHOLE,
                    advanced=True,
                    tooltip="For a picture in which nothing is found: mask the whole image (with a note), skip the "
                    "image (its mask is empty, and training leaves it out), or stop with an error.",
                ),
            ],
            outputs=[
                io.Mask.Output("masks", tooltip="One for each image, in order, 1 where the concept is."),
                io.Image.Output("overlay", tooltip="The pictures with the masks, boxes and scores laid over."),
            ],
            has_intermediate_output=True,
            is_input_list=True,
        )

    @classmethod
    @takes_lists(images=joined_images, mask=all_masks, boxes=joined_boxes)
    def execute(
        cls,
        model,
        clip,
        images,
        backend=None,
        mask=None,
        boxes=None,
        grow=0,
        feather=0,
        min_area=0.0,
        nothing_found=WHOLE,
    ) -> io.NodeOutput:
        # The host leaves out a back-end that it does not know. A caller without a graph may give the name alone.
        if not backend:
            raise ValueError(f"backend: none of this name; choose one of {', '.join(BACKENDS)}")
        chosen = {"backend": backend} if isinstance(backend, str) else dict(backend)
        name = chosen.pop("backend")
        parse_phrases(chosen.get("phrase", ""))
        settings = MaskSettings(**chosen, grow=grow, feather=feather, min_area=min_area, nothing_found=nothing_found)
        masks, lines, found = make_masks(model, clip, images, name, mask, boxes, settings)
        shown = written(
            with_boxes(overlay(entry.as_image, as_floats(own)), seen or [None] * len(entry))
            for entry, own, seen in zip(images, masks, found, strict=True)
        )
        joined = written(map(as_floats, masks))
        preview = ui.PreviewImage(shown[:SHOWN], cls=cls).as_dict()
        return io.NodeOutput(joined, shown, ui={**preview, "text": ("\n".join(lines),)})
