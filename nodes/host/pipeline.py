"""What the pipeline asks of a host (mace.pipeline.host), of ComfyUI's models, text encoders and files."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ...mace.method.refine import Refinement
from ...mace.pipeline.host import Edit
from ...mace.pipeline.prior import BUILT_IN, CaptionSource
from . import files
from .kept.content import base_of
from .model.fp8 import fp8_note
from .model.unet import (
    ATTACHMENT,
    BASE_MODEL,
    REFINED_BY,
    REFINEMENT,
    check_editable,
    cross_attention_keys,
    effective_weight,
    is_unet,
    key_patches,
    patched,
    pooled_key,
    weight_key,
)
from .port_layout import Layout
from .port_text import PortText
from .text import TextEncoder


@dataclass(frozen=True)
class ModelWeights:
    """The weights by which a MODEL reads its text. layout: of its ports; None for UNets, read by cross-attention."""

    model: object
    layout: Layout | None = None

    @property
    def device(self) -> torch.device:
        """Where the host computes the model."""
        return self.model.load_device

    @property
    def refinement(self) -> Refinement | None:
        """The last refinement of the MODEL, which travels with it."""
        return self.model.get_attachment(REFINEMENT)

    def tokens(self, projections: str = "both") -> tuple[str, ...]:
        """The weights that read tokens. projections: "both", or "keys" or "values" alone, which UNets know.

        Raises ValueError for a MODEL that has none of these.
        """
        if self.layout is None:
            return tuple(cross_attention_keys(self.model, projections))
        if projections != "both":
            raise ValueError(
                f"{type(self.model.model).__name__} reads its text by {self.layout.tokens[0]}, which is neither keys "
                "nor values: set projections to both"
            )
        return tuple(map(weight_key, self.layout.tokens))

    @property
    def values(self) -> tuple[str, ...]:
        """The weights that tell how the model reads its text: a UNet's values, all of what is at ports."""
        return self.tokens("values" if self.layout is None else "both")

    @property
    def pooled(self) -> tuple[str, ...]:
        """The weights that read the pooled text."""
        if self.layout is not None:
            return tuple(map(weight_key, self.layout.pooled))
        key = pooled_key(self.model)
        return () if key is None else (key,)

    @property
    def others(self) -> tuple[tuple[str, ...], ...]:
        """The weights that read each further text, where the model reads its prompt by several."""
        return () if self.layout is None else tuple(tuple(map(weight_key, own)) for own in self.layout.others)

    @property
    def left(self) -> tuple[str, ...]:
        """Layers that read some prompts and are not edited."""
        return () if self.layout is None else self.layout.left

    def effective(self, keys: Iterable[str]) -> Iterator[Tensor]:
        """Weights with all their patches; see `effective_weight`."""
        patches = key_patches(self.model)
        return (effective_weight(patches[key], key, self.device) for key in keys)

    def edited(self, edit: Edit, step: Callable[[int], None]) -> tuple["ModelWeights", list[str]]:
        """A clone of the MODEL with the edit as patches, and its record among its attachments; lines on it."""
        model, notes = self.model, []
        # Adding no patches would make it another model to whoever looks at its uuid.
        found = patched(model, list(edit.keys), edit.delta, edit.strength, step) if edit.keys else model.clone()
        if edit.record is not None:
            found.set_attachments(ATTACHMENT, (*(model.get_attachment(ATTACHMENT) or ()), edit.record))
            note = fp8_note(found, list(edit.keys))
            notes += [note] if note else []
        if edit.refinement is not None:
            if edit.keys:
                changes = tuple(found.patches[key][-1][1][1][0] for key in edit.keys)
                found.set_attachments(REFINED_BY, (*(model.get_attachment(REFINED_BY) or ()), *changes))
            found.set_attachments(BASE_MODEL, base_of(model))
            found.set_attachments(REFINEMENT, edit.refinement)
        return ModelWeights(found, self.layout), notes


def text_of(clip, model=None) -> TextEncoder | PortText:
    """The text of a CLIP as a MODEL reads it: at its text ports; a UNet, and none, read the embeddings themselves."""
    return TextEncoder(clip) if model is None or is_unet(model) else PortText(model, clip)


def text_and_weights(model, clip) -> tuple[TextEncoder | PortText, ModelWeights]:
    """How a MODEL reads the text of a CLIP, to edit it.

    Raises ValueError for a MODEL without text, for a quantised one, and for another family's CLIP.
    """
    text = text_of(clip, model)
    if isinstance(text, PortText):
        weights = ModelWeights(model, text.layout)
    else:
        text.check_width(model)
        weights = ModelWeights(model)
    # Before anything is encoded for it.
    check_editable(model, weights.tokens())
    return text, weights


def captions_of(name: str, count: int, seed: int) -> CaptionSource:
    """The captions of BUILT_IN or of a file of the input folder. Raises ValueError for one that is gone."""
    if name == BUILT_IN:
        return CaptionSource(name, count, seed)
    return CaptionSource(name, count, seed, files.input_path(name) if count else None, files.file_stamp(name))
