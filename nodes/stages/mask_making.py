"""How Mask Concept makes its masks: things found in each picture, put together into one mask a picture."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from comfy.utils import ProgressBar
from torch import Tensor

from ...mace.concepts.images import ConceptImages
from ...mace.concepts.phrases import phrases_of
from ...mace.masks.boxes import ALL, BEST, box_masks, read_boxes
from ...mace.masks.given import mask_rows, read_masks
from ...mace.masks.kept import as_bytes, as_floats
from ...mace.masks.maps import UNION, feather, grow, mask_of_map, one_mask
from ...mace.messages import MessageError
from ...mace.method.tokens import fill
from ...mace.pipeline.store import Budget
from ..host.detectors.found import Found
from ..host.detectors.model_files import AUTO, NO_SEGMENTER
from ..host.detectors.tools import GROUNDED, TRANSFORMERS, detector_of, files_of, segmenter_of
from ..host.kept.content import content_sha256, model_sha256
from ..host.kept.on_disk import written
from ..host.kept.store import ContentStore
from ..host.model.attention_maps import MOST_IMAGES, concept_maps
from ..host.model.unet import is_unet
from ..host.networks import Batches
from ..host.progress import send_text
from ..host.text import TextEncoder

ATTENTION, EXTERNAL, BOXES, WHOLE = "attention", "external mask", "boxes", "whole image"
SKIP, ERROR = "skip the image", "error"
NOTHING_FOUND = (WHOLE, SKIP, ERROR)

# What masks were made from, by their images and their bytes. It stays as long as the host may keep the masks.
SOURCES_BYTES = 4 << 20
_sources = ContentStore(SOURCES_BYTES, Budget(SOURCES_BYTES))


@dataclass(frozen=True)
class MaskSettings:
    """What the artist sets. phrase: see mace.concepts.phrases, "" for the concepts' own words.  choice: one of
    mace.masks.boxes' CHOICES.  combine: one of mace.masks.maps' COMBINED.  grow, feather: pixels.  min_area: share of
    the picture that a thing must cover.  nothing_found: one of NOTHING_FOUND.
    """

    detector: str = AUTO
    segmenter: str = AUTO
    phrase: str = ""
    box_threshold: float = 0.3
    text_threshold: float = 0.25
    choice: str = ALL
    combine: str = UNION
    grow: int = 0
    feather: int = 0
    min_area: float = 0.0
    nothing_found: str = WHOLE


def attention_masks(model, encoder: TextEncoder, images: ConceptImages, together: Batches | None = None) -> Tensor:
    """Masks [n, H, W] from the model's own cross-attention to the concept's tokens, cut by Otsu's threshold.

    together: as of `concept_maps`.
    """
    target = images.concept.target
    prompt = fill(images.template, target)
    positions = encoder.pair(images.template, target, images.concept.mapping).phrase
    pooled = encoder.pooled([prompt]) if encoder.has_pooled(model) else None
    context = encoder.encode([prompt])[0]
    maps = concept_maps(model, images.latents, context, positions, pooled, target, together=together)
    return mask_of_map(maps, *images.pictures.shape[1:3])


def source_of(images: ConceptImages, masks: Tensor) -> str | None:
    """What the masks [n, H, W] of images were made from, as a key, where this process found them: by attention or by
    a detector of its own.

    A device may make the same masks with other bits the next time.  images, masks: as of `without_skipped`.
    """
    return _sources.get(_place(images, masks))


def _place(images: ConceptImages, masks: Tensor) -> str:
    return content_sha256(images.source or images.latents, as_floats(masks))


def whole_image(images: ConceptImages) -> Tensor:
    """Masks [n, H, W] of ones, as they are kept; all of them in one byte."""
    return as_bytes(torch.ones(1)).expand(images.pictures.shape[:3])


def resized(mask: Tensor, height: int, width: int) -> Tensor:
    """A MASK [..., h, w] as masks [n, height, width]."""
    mask = mask.reshape(-1, *mask.shape[-2:]).float()
    if mask.shape[1:] != (height, width):
        mask = F.interpolate(mask[:, None], (height, width), mode="bilinear", align_corners=False)[:, 0]
    return mask


def fitted(masks: Sequence[Tensor], images: Sequence[ConceptImages]) -> list[Tensor]:
    """External MASKs [n, h, w], together N or 1, as masks [n, H, W] for each concept's images, in their order.

    They are as masks are kept, on the disk: a list's MASK is as large as memory.
    Raises ValueError for another number of masks than images and for what `read_masks` refuses.
    """
    size = images[0].pictures.shape[1:3]
    total = sum(len(entry) for entry in images)
    count = sum(len(mask_rows(part, "masks")) for part in masks)
    if count not in (1, total):
        raise ValueError(
            f"there are {count} masks for {total} images: connect the pictures output of Concept Images to the "
            "node that makes the masks, so that there is one for each image, in the same order"
        )
    mask = written(as_bytes(resized(some, *size).clamp(0, 1)) for part in masks for some in read_masks(part, "masks"))
    return list(mask.expand(total, -1, -1).split([len(entry) for entry in images]))


def no_empty(masks: Tensor, images: ConceptImages, nothing_found: str = WHOLE) -> tuple[Tensor, list[str]]:
    """The masks with what is to be done about empty ones done, and a line for the artist on each concept with such.

    An empty mask becomes the whole image, or stays empty (which training skips). Raises ValueError, naming concept and
    pictures, for "error".
    """
    filled = masks.flatten(1).amax(dim=1) > 0
    if filled.all():
        return masks, []
    target, count = images.concept.target, int((~filled).sum())
    said = f"{target}: {count} of {len(masks)} masks were empty"
    if nothing_found == ERROR:
        numbers = ", ".join(str(place + 1) for place in (~filled).nonzero()[:, 0].tolist())
        raise ValueError(
            f"{said} (images {numbers}): lower the threshold, change the phrase, or choose another nothing_found"
        )
    if nothing_found == SKIP:
        return masks, [f"{said}; training skips these images"]
    whole = torch.where(filled.view(-1, 1, 1), masks, torch.ones_like(masks))
    return whole, [f"{said}; the whole image is used there"]


def without_skipped(images: ConceptImages, masks: Tensor) -> tuple[ConceptImages, Tensor, list[str]]:
    """What training takes: the images whose masks [n, H, W] are not empty, their masks, and a line on the others.

    Raises ValueError, naming the concept, when all are empty.
    """
    filled = masks.flatten(1).amax(dim=1) > 0
    if filled.all():
        return images, masks, []
    target = images.concept.target
    if not filled.any():
        raise MessageError(
            f"all masks of {target!r} are empty, so no image is left to train it on: look at Mask Concept's overlay, "
            "lower the threshold, change the phrase, or let nothing_found be the whole image"
        )
    left = f"{target}: {int((~filled).sum())} of {len(masks)} images have an empty mask and are skipped"
    return images.only(filled), masks[filled], [left]


def _boxes_of(
    images: Sequence[ConceptImages], backend: str, boxes, phrases: Sequence[str], s: MaskSettings
) -> list[list[Found]]:
    """What is found in each picture of each concept, by falling score: in the boxes given, or by the detector."""
    height, width = images[0].pictures.shape[1:3]
    if boxes is not None:
        read = read_boxes(boxes, sum(len(entry) for entry in images), height, width)
        given = iter([Found(*entry) for entry in read])
        return [[next(given) for _ in range(len(entry))] for entry in images]
    if backend == BOXES:
        raise ValueError("the back-end is boxes and the boxes input is empty: connect a node that gives BOUNDING_BOX")
    detector, found = None, []
    for entry, phrase in zip(images, phrases, strict=True):
        if entry.concept.type == "style":
            found.append([])
            continue
        detector = detector or detector_of(backend, s.detector)
        send_text(f"looking for {phrase}")
        found.append(detector.detect(entry.as_image, phrase, s.box_threshold, s.text_threshold))
    return found


def _things_of(
    images: Sequence[ConceptImages], backend: str, found: Sequence[Sequence[Found]], s: MaskSettings
) -> Iterator[list[Tensor]]:
    """Masks [k, H, W] of the things found in each picture, concept by concept: many things take much memory."""
    segmenter = None
    for entry, own in zip(images, found, strict=True):
        boxes = [seen.boxes for seen in own]
        if backend != BOXES and s.segmenter != NO_SEGMENTER and any(len(part) for part in boxes):
            segmenter = segmenter or segmenter_of(backend, s.segmenter)
            send_text(f"cutting out {entry.concept.target}")
            yield segmenter.segment(entry.as_image, boxes)
        else:
            yield [box_masks(part, *entry.pictures.shape[1:3]) for part in boxes]


def make_masks(
    model,
    clip,
    images: Sequence[ConceptImages],
    backend: str,
    external: Sequence[Tensor] | None = None,
    boxes=None,
    settings: MaskSettings | None = None,
) -> tuple[list[Tensor], list[str], list[list[Found]]]:
    """Masks [n, H, W] of each concept's images, lines for the artist, and what was found in each image, if looked for.

    The masks are as they are kept (see `mace.masks.kept`), on the disk. Styles take the whole image, except of external
    masks. external: MASKs.  boxes: the host's BOUNDING_BOX, in place of a detector.
    Raises ValueError for external masks and boxes that are not there or do not fit, and for what a back-end lacks.
    """
    s = settings or MaskSettings()
    progress = ProgressBar(len(images))
    lines, masks, encoder, found_by = [], [], None, None
    phrases = phrases_of(s.phrase, [entry.concept for entry in images])
    found: list[list[Found]] = [[] for _ in images]
    things: Iterable = [None] * len(images)
    if backend == EXTERNAL:
        if external is None:
            raise ValueError("the back-end is external mask and the mask input is empty: connect a MASK")
        things = (as_floats(mask)[:, None] for mask in fitted(external, images))
    elif backend in (GROUNDED, TRANSFORMERS, BOXES):
        found = _boxes_of(images, backend, boxes, phrases, s)
        for entry, own in zip(images, found, strict=True):
            if entry.concept.type == "style":
                own.clear()
            elif s.choice == BEST:
                own[:] = [seen.first(1) for seen in own]
        things = _things_of(images, backend, found, s)
        if boxes is None and any(len(seen.boxes) for own in found for seen in own):
            found_by = files_of(backend, s.detector, s.segmenter)
    elif backend == ATTENTION and any(entry.concept.type != "style" for entry in images):
        if not is_unet(model):
            raise ValueError(
                f"{type(model.model).__name__} is no Stable Diffusion UNet, whose cross-attention tells where a thing "
                "is: choose another back-end than attention"
            )
        encoder = TextEncoder(clip)
        encoder.check_width(model)
        found_by = model_sha256(model)
    together = Batches(MOST_IMAGES)
    for entry, phrase, own, seen in zip(images, phrases, things, found, strict=True):
        warning: list[str] = []
        if backend == WHOLE or (entry.concept.type == "style" and backend != EXTERNAL):
            made = whole_image(entry)
            share = 1.0
        else:
            if backend == ATTENTION:
                own = attention_masks(model, encoder, entry, together)[:, None]
            made = torch.stack([one_mask(part, s.combine, s.min_area) for part in own])
            made = feather(grow(made, s.grow), s.feather)
            made, warning = no_empty(made, entry, s.nothing_found)
            share, made = float(made.mean()), written([as_bytes(made)])
            by_attention = backend == ATTENTION
            # The whole image where nothing was found is one, whatever looked for it.
            if found_by and made.any() and (by_attention or any(len(part.boxes) for part in seen)):
                read = encoder.content(entry.concept.target, entry.concept.mapping) if by_attention else phrase
                source = content_sha256(found_by, read, entry.source or entry.latents, entry.template, s)
                _sources.put(_place(*without_skipped(entry, made)[:2]), source, 2 * len(source))
        masks.append(made)
        lines.append(f"{entry.concept.target}: {share:.0%} of the image{_counted(seen)}")
        lines += warning
        if warning and backend in (GROUNDED, TRANSFORMERS) and boxes is None:
            lines.append(f"looked for {phrase}; another phrase may find it: {entry.concept.target} = ...")
        progress.update(1)
    return masks, lines, found


def _counted(found: Sequence[Found]) -> str:
    """How many boxes there are in how many images, as a part of a line."""
    if not found:
        return ""
    return f", {sum(map(len, found))} boxes in {len(found)} images"
