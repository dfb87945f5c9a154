"""Training images of concepts, and what they are asked to show."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from torch import Tensor

from ..messages import MessageError
from .concept import Concept, normalised

# The prompt a type's training images are made with (Section 4 of the paper).
IMAGE_PROMPTS = {
    "object": "a photo of the {}",
    "celebrity": "a photo of {}",
    "style": "a photo in the style of {}",
    "explicit": "a photo of {}",
}


@dataclass(frozen=True)
class ConceptImages:
    """The training images of one concept.

    latents: [n, channels, h, w] on the CPU, in the VAE's scale (before the model's process_latent_in).  pictures:
    uint8 [n, H, W, 3] on the CPU.  template: the prompt they show, with {} where the concept's phrase stands.  preset:
    the one that the concept's list carries, "" for none (see `ConceptList`).  source: what they were made from, as a
    key, since a device may draw the same pictures with other bits the next time; "" where only their bytes say it.
    """

    concept: Concept
    # Not told: the host prints what a failing node was given, all of it.
    latents: Tensor = field(repr=False)
    pictures: Tensor = field(repr=False)
    template: str
    preset: str = ""
    source: str = ""

    def __len__(self) -> int:
        return len(self.latents)

    def only(self, kept: Tensor) -> "ConceptImages":
        """The images where `kept`, a bool [n], says so."""
        source = self.source and f"{self.source} {kept.nonzero()[:, 0].tolist()}"
        return replace(self, latents=self.latents[kept], pictures=self.pictures[kept], source=source)

    @property
    def as_image(self) -> Tensor:
        """The pictures as the host passes images on, float32 [n, H, W, 3] in 0..1."""
        return self.pictures.float() / 255


def chain(*parts: Iterable[ConceptImages]) -> tuple[ConceptImages, ...]:
    """Several nodes' images as one list.

    Raises ValueError when a concept has images twice and when images are not all of one size, since concepts train
    side by side in one batch.
    """
    chained = tuple(images for part in parts for images in part)
    seen: set[str] = set()
    for images in chained:
        name = normalised(images.concept.target)
        if name in seen:
            raise MessageError(f"{images.concept.target!r} has images of two nodes; take it out of one list")
        seen.add(name)
        if images.pictures.shape[1:] != chained[0].pictures.shape[1:]:
            (h, w), (h0, w0) = images.pictures.shape[1:3], chained[0].pictures.shape[1:3]
            raise MessageError(
                f"the images of {images.concept.target!r} are {w}x{h} and those of {chained[0].concept.target!r} "
                f"{w0}x{h0}: make them one size (Upscale Image)"
            )
    return chained
