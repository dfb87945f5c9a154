"""Concept Images: what erasure LoRAs are trained on."""

from collections.abc import Sequence

import comfy.sample
import comfy.samplers
import latent_preview
import torch
from comfy import model_management
from comfy.utils import ProgressBar
from comfy_api.latest import io, ui
from torch import Tensor

from ...mace.concepts.concept import Concept
from ...mace.concepts.images import IMAGE_PROMPTS, ConceptImages, chain
from ...mace.method.tokens import fill
from ..host.kept.content import content_sha256, model_sha256, module_sha256
from ..host.kept.on_disk import written
from ..host.kept.store import ContentStore
from ..host.model.sizes import side_inputs, sized
from ..host.text import TextEncoder
from ..schema import CATEGORY, ConceptsType, ImagesType
from .refine import AUTO

SHOWN = 64
SHARE_OF_MEMORY = 0.1

_store = ContentStore(int(model_management.get_total_memory(torch.device("cpu")) * SHARE_OF_MEMORY))


def template_of(concept: Concept, prompt: str) -> str:
    """The prompt a concept's images are made with, with {} for its phrase. Raises ValueError without a {}."""
    if prompt.strip().lower() in (AUTO, ""):
        return IMAGE_PROMPTS[concept.type]
    template = " ".join(prompt.split())
    rest = template.replace("{}", "")
    if rest == template or "{" in rest or "}" in rest:
        raise ValueError(f"prompt: {prompt!r} needs {{}} where the concept's phrase goes, and no other braces")
    return template


def eight_bit(pictures: Tensor) -> Tensor:
    """Pictures [n, H, W, C] as a file would hold them, so that what is kept and what is made new are the same."""
    return (pictures[..., :3].float().clamp(0, 1) * 255).round().to("cpu", torch.uint8)


class Sampling:
    """The host's sampler for training images, with what it depends on as a key.

    settings: steps, cfg, sampler_name, scheduler, seed, count, width, height.
    """

    def __init__(self, model, encoder: TextEncoder, vae, negative: str, progress: ProgressBar, **settings):
        self.model, self.encoder, self.vae, self.negative, self.progress = model, encoder, vae, negative, progress
        self.settings = settings
        self._key = (model_sha256(model), module_sha256(vae.first_stage_model), negative, settings)

    def images(self, concept: Concept, template: str) -> ConceptImages:
        """The images of one concept; the last ones made are kept, so that a longer list makes only what is new.

        Every concept is sampled with the same seed in a batch of its own: which others are in the list changes
        nothing. Advances progress by `steps`.
        """
        key = content_sha256(self._key, self.encoder.content(concept.target, self.negative), concept.target, template)
        found = _store.get(key)
        if found is None:
            latents = self._sample(fill(template, concept.target))
            pictures = eight_bit(_finite(self.vae.decode(latents), concept))
            found = (written([latents]), written([pictures]))
            _store.put(key, found, sum(t.numel() * t.element_size() for t in found))
        else:
            self.progress.update(self.settings["steps"])
        latents, pictures = found
        return ConceptImages(concept, latents, pictures, template)

    def _sample(self, prompt: str) -> Tensor:
        s = self.settings
        clip = self.encoder.clip
        # The host gives an empty latent the model's own channels and scale.
        empty = torch.zeros(s["count"], 4, s["height"] // 8, s["width"] // 8)
        empty = comfy.sample.fix_empty_latent_channels(self.model, empty, 8)
        noise = comfy.sample.prepare_noise(empty, s["seed"])
        positive, negative = (
            clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in (prompt, self.negative)
        )
        return sampled(self.model, noise, positive, negative, empty, s, s["seed"], self.progress)


def sampled(model, noise, positive, negative, empty, settings: dict, seed: int, progress: ProgressBar, each: int = 1):
    """Latents of the host's sampler on the CPU, float32. settings: steps, cfg, sampler_name and scheduler.

    Advances progress by `each` a step, with the host's previews. Raises the host's interrupt.
    """
    previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)
    start = progress.current

    def callback(step, x0, x, total):
        model_management.throw_exception_if_processing_interrupted()
        preview = previewer.decode_latent_to_preview_image("JPEG", x0) if previewer else None
        progress.update_absolute(start + (step + 1) * each, preview=preview)

    how = (settings[name] for name in ("steps", "cfg", "sampler_name", "scheduler"))
    latents = comfy.sample.sample(
        model, noise, *how, positive, negative, empty, callback=callback, disable_pbar=True, seed=seed
    )
    return latents.to("cpu", torch.float32)


def _finite(values: Tensor, concept: Concept) -> Tensor:
    """The values. Raises ValueError when some are not finite."""
    if not torch.isfinite(values).all():
        raise ValueError(
            f"the images of {concept.target!r} hold values that are not finite (NaN or infinity): check the model, and "
            "use the VAE in fp32 or bf16"
        )
    return values


def own_images(vae, concept: Concept, template: str, pictures: Tensor) -> ConceptImages:
    """The artist's own pictures [n, H, W, 3] of one concept, encoded."""
    pictures = eight_bit(vae.vae_encode_crop_pixels(pictures))
    latents = _finite(vae.encode(pictures.float() / 255), concept).to("cpu", torch.float32)
    return ConceptImages(concept, written([latents]), written([pictures]), template)


def make_images(
    model, clip, vae, concepts: Sequence[Concept], prompt: str, negative: str, settings: dict
) -> tuple[ConceptImages, ...]:
    """Training images of every concept, by the host's sampler. settings: see `Sampling`."""
    templates = [template_of(concept, prompt) for concept in concepts]
    width, height = sized(model, settings["width"], settings["height"])
    settings = {**settings, "width": width, "height": height}
    progress = ProgressBar(len(concepts) * settings["steps"])
    sampling = Sampling(model, TextEncoder(clip), vae, negative, progress, **settings)
    return tuple(sampling.images(*pair) for pair in zip(concepts, templates, strict=True))


class ConceptImagesNode(io.ComfyNode):
    """Draws the training images of every concept, or takes the artist's own."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MACE_ConceptImages",
            display_name="Concept Images (MACE)",
            category=CATEGORY,
            description="The images that erasure LoRAs are trained on: drawn by the model itself, or your own. Images "
            "already drawn for a concept are kept, so a longer list draws only what is new.",
            search_aliases=["mace", "training images", "dataset", "generate"],
            inputs=[
                io.Model.Input("model", tooltip="The model to erase from, before CFR Refine."),
                io.Clip.Input("clip", tooltip="Its text encoder."),
                io.Vae.Input("vae", tooltip="Its VAE."),
                ConceptsType.Input("concepts", tooltip="What to erase, from Concepts."),
                io.Int.Input("count", default=8, min=1, max=64, tooltip="Images for each concept; the paper uses 8."),
                *side_inputs("the images"),
                io.Int.Input(
                    "seed", default=0, min=0, max=2**64 - 1, control_after_generate=False, tooltip="Seed of the noise."
                ),
                io.Int.Input("steps", default=20, min=1, max=200, tooltip="Sampling steps."),
                io.Float.Input("cfg", default=7.0, min=0.0, max=30.0, step=0.5, tooltip="Guidance scale."),
                io.Combo.Input(
                    "sampler_name",
                    options=comfy.samplers.KSampler.SAMPLERS,
                    default="euler",
                    tooltip="Sampler.",
                ),
                io.Combo.Input(
                    "scheduler",
                    options=comfy.samplers.KSampler.SCHEDULERS,
                    default="normal",
                    tooltip="Scheduler.",
                ),
                io.String.Input(
                    "prompt",
                    default=AUTO,
                    tooltip="The prompt with {} for the concept's phrase. auto is by type: a photo of the {} (object), "
                    "a photo of {} (celebrity, explicit), a photo in the style of {} (style).",
                ),
                io.String.Input("negative", default="", tooltip="Negative prompt."),
                io.Image.Input(
                    "images",
                    optional=True,
                    tooltip="Your own images in place of drawn ones, for a list of one concept. Chain one node for "
                    "each concept. All images of a chain have one size.",
                ),
                ImagesType.Input("more", optional=True, tooltip="Images of another node; they come first."),
            ],
            outputs=[
                ImagesType.Output("images", tooltip="Latents and pictures by concept, for Mask Concept and training."),
                io.Image.Output(
                    "pictures", tooltip="All pictures in order as one batch, for any mask node (SAM, Impact ...)."
                ),
            ],
            has_intermediate_output=True,
        )

    @classmethod
    def validate_inputs(cls, prompt=None):
        try:
            if prompt is not None:
                template_of(Concept("x", "y", "object"), prompt)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, model, clip, vae, concepts, prompt, negative, images=None, more=(), **settings) -> io.NodeOutput:
        if vae is None:
            raise ValueError("the vae input is empty: this checkpoint has none; connect Load VAE")
        if images is None:
            made = make_images(model, clip, vae, concepts, prompt, negative, settings)
        elif len(concepts) != 1:
            raise ValueError(
                f"own images are for one concept and the list holds {len(concepts)}: connect Concepts with one line, "
                "and chain a Concept Images node for each concept through its input more"
            )
        else:
            made = (own_images(vae, concepts[0], template_of(concepts[0], prompt), images),)
        chained = chain(more, made)
        pictures = written(entry.as_image for entry in chained)
        names = ", ".join(f"{entry.concept.target} ({len(entry)})" for entry in chained)
        preview = ui.PreviewImage(pictures[:SHOWN], cls=cls).as_dict()
        return io.NodeOutput(chained, pictures, ui={**preview, "text": (names,)})
