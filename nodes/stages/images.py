"""Training images as a stage: drawn by the model itself, or the artist's own."""

from collections.abc import Sequence

import comfy.sample
import torch
from comfy import model_management
from comfy.utils import ProgressBar
from torch import Tensor

from ...mace.concepts.concept import Concept
from ...mace.concepts.images import IMAGE_PROMPTS, ConceptImages
from ...mace.concepts.templates import TemplateError, checked_template
from ...mace.concepts.text import check_characters
from ...mace.masks.given import read_pictures
from ...mace.messages import MessageError
from ...mace.method.tokens import fill
from ...mace.pipeline.written import AUTO
from ..host.any_text import AnyText, text_to_draw_with
from ..host.kept.content import content_sha256, model_sha256, module_sha256
from ..host.kept.on_disk import written
from ..host.kept.store import ContentStore
from ..host.model.family import sized
from ..host.networks import Batches
from ..host.progress import send_text
from ..host.prompts import tokens_of
from ..host.sampler import SHARE_OF_MEMORY, draws_noise, eight_bit, sampled
from ..host.text import TextEncoder

_store = ContentStore(int(model_management.get_total_memory(torch.device("cpu")) * SHARE_OF_MEMORY))


def template_of(concept: Concept, prompt: str) -> str:
    """The prompt a concept's images are made with, with {} for its phrase. Raises ValueError without a {}."""
    if prompt.strip().lower() in (AUTO, ""):
        return IMAGE_PROMPTS[concept.type]
    check_characters(prompt, "prompt")
    try:
        return checked_template(prompt)
    except TemplateError as error:
        raise TemplateError(f"prompt: {error}") from None


class Sampling:
    """The host's sampler for training images, with what it depends on as a key.

    All of one concept are drawn together, fewer where memory runs out. settings: steps, cfg, sampler_name, scheduler,
    seed, count, width, height.
    """

    def __init__(self, model, encoder: TextEncoder | AnyText, vae, negative: str, progress: ProgressBar, **settings):
        self.model, self.encoder, self.vae, self.negative, self.progress = model, encoder, vae, negative, progress
        self.settings = settings
        self._together = Batches(settings["count"])
        self._key = (model_sha256(model), module_sha256(vae.first_stage_model), negative, settings)

    def images(self, concept: Concept, template: str) -> ConceptImages:
        """The images of one concept; the last ones made are kept, so that a longer list makes only what is new.

        Every concept is sampled with the same seed in batches of its own: which others are in the list changes
        nothing. Advances progress by `steps`.
        """
        key = self._key_of(concept, template)
        found = _store.get(key)
        if found is None:
            latents = self._sample(fill(template, concept.target))
            pictures = eight_bit(_finite(self.vae.decode(latents), concept))
            found = (written([latents]), written([pictures]))
            _store.put(key, found, sum(t.numel() * t.element_size() for t in found))
        else:
            self.progress.update(self.settings["steps"])
        latents, pictures = found
        return ConceptImages(concept, latents, pictures, template, source=key)

    def kept(self, concept: Concept, template: str) -> tuple[str, ConceptImages | None]:
        """(what the images of a concept depend on, those that are kept, so that none are drawn)."""
        key = self._key_of(concept, template)
        found = _store.get(key)
        return key, None if found is None else ConceptImages(concept, *found, template, source=key)

    def _key_of(self, concept: Concept, template: str) -> str:
        content = self.encoder.content(concept.target, self.negative)
        return content_sha256(self._key, content, concept.target, template)

    def _sample(self, prompt: str) -> Tensor:
        s = self.settings
        clip = self.encoder.clip
        # The host gives an empty latent the model's own channels and scale.
        empty = torch.zeros(s["count"], 4, s["height"] // 8, s["width"] // 8)
        empty = comfy.sample.fix_empty_latent_channels(self.model, empty, 8)
        noise = comfy.sample.prepare_noise(empty, s["seed"])
        positive, negative = (
            clip.encode_from_tokens_scheduled(tokens_of(clip, text, field))
            for text, field in ((prompt, "prompt"), (self.negative, "negative"))
        )
        begin, drawn = self.progress.current, []

        def draw(rows: Tensor) -> Tensor:
            if len(rows) < s["count"] and not drawn and draws_noise(s["sampler_name"]):
                send_text(
                    f"memory ran out, and fewer are drawn together: {s['sampler_name']} draws noise at every step, so "
                    "the pictures are others than with more memory"
                )
            # Behind a batch that did not fit it stands further on.
            self.progress.current = begin + s["steps"] * len(drawn) // s["count"]
            # What noise a sampler draws itself is to be another for each part.
            seed, each = s["seed"] + len(drawn), len(rows) / s["count"]
            own = sampled(self.model, rows, positive, negative, empty[: len(rows)], s, seed, self.progress, each)
            drawn.extend(own)
            return own

        latents = torch.stack(self._together.run(noise, draw))
        self.progress.update_absolute(begin + s["steps"])
        return latents


def _finite(values: Tensor, concept: Concept) -> Tensor:
    """The values. Raises ValueError when some are not finite."""
    if not torch.isfinite(values).all():
        raise MessageError(
            f"the images of {concept.target!r} hold values that are not finite (NaN or infinity): check the model, and "
            "use the VAE in fp32 or bf16"
        )
    return values


def own_images(vae, concept: Concept, template: str, pictures: Tensor) -> ConceptImages:
    """The artist's own pictures of one concept, encoded. Raises ValueError for what `read_pictures` refuses."""
    pictures = eight_bit(vae.vae_encode_crop_pixels(read_pictures(pictures, "images")))
    latents = _finite(vae.encode(pictures.float() / 255), concept).to("cpu", torch.float32)
    source = content_sha256(module_sha256(vae.first_stage_model), pictures)
    return ConceptImages(concept, written([latents]), written([pictures]), template, source=source)


def make_images(
    model, clip, vae, concepts: Sequence[Concept], prompt: str, negative: str, settings: dict
) -> tuple[ConceptImages, ...]:
    """Training images of every concept, by the host's sampler. settings: see `Sampling`."""
    templates = [template_of(concept, prompt) for concept in concepts]
    sampling = _sampling(model, clip, vae, negative, settings, len(concepts))
    return tuple(sampling.images(*pair) for pair in zip(concepts, templates, strict=True))


def kept_images(
    model, clip, vae, concepts: Sequence[Concept], prompt: str, negative: str, settings: dict
) -> list[tuple[str, ConceptImages | None]]:
    """Of every concept, (what its images depend on, those that `make_images` would not have to draw)."""
    sampling = _sampling(model, clip, vae, negative, settings, len(concepts))
    return [sampling.kept(concept, template_of(concept, prompt)) for concept in concepts]


def _sampling(model, clip, vae, negative: str, settings: dict, count: int) -> Sampling:
    width, height = sized(model, settings["width"], settings["height"])
    settings = {**settings, "width": width, "height": height}
    return Sampling(
        model, text_to_draw_with(clip, model), vae, negative, ProgressBar(count * settings["steps"]), **settings
    )
