"""Concept Images: what erasure LoRAs are trained on."""

from dataclasses import replace

import comfy.samplers
from comfy_api.latest import io, ui

from ...mace.concepts.concept import Concept, preset_of
from ...mace.concepts.images import chain
from ...mace.pipeline.written import AUTO
from ..host.kept.on_disk import written
from ..lists import joined_images, joined_pictures, takes_lists
from ..schema import ERASE, SHOWN, ConceptsType, ImagesType, sampling_inputs, seed_input, side_inputs
from ..stages.images import make_images, own_images, template_of


class ConceptImagesNode(io.ComfyNode):
    """Draws the training images of every concept, or takes the artist's own."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MACE_ConceptImages",
            display_name="Concept Images (MACE)",
            category=ERASE,
            description="The images that erasure LoRAs are trained on: drawn by the model itself, or your own. Images "
            "already drawn for a concept are kept, so a longer list draws only what is new.",
            search_aliases=["mace", "training images", "dataset", "generate"],
            inputs=[
                io.Model.Input("model", tooltip="The model to erase from, before CFR Refine."),
                io.Clip.Input("clip", tooltip="Its text encoder."),
                io.Vae.Input("vae", tooltip="Its VAE."),
                ConceptsType.Input("concepts", tooltip="What to erase, from Concepts."),
                io.Int.Input(
                    "count",
                    default=8,
                    min=1,
                    max=64,
                    tooltip="More show more of what the concept looks like, and take longer; the paper uses 8 for each "
                    "concept.",
                ),
                *side_inputs("the images"),
                seed_input("Another seed draws other images of the same kind: the seed of the noise.", 2**64 - 1),
                *sampling_inputs(
                    "More draw cleaner images and take longer. Sampling steps.",
                    "Larger holds the images closer to the prompt. Guidance scale.",
                ),
                io.Combo.Input(
                    "sampler_name",
                    advanced=True,
                    options=comfy.samplers.KSampler.SAMPLERS,
                    default="euler",
                    tooltip="Another one draws other images of the same kind: the sampler.",
                ),
                io.Combo.Input(
                    "scheduler",
                    advanced=True,
                    options=comfy.samplers.KSampler.SCHEDULERS,
                    default="normal",
                    tooltip="Another one takes the noise away in other shares a step: the scheduler.",
                ),
                io.String.Input(
                    "prompt",
                    advanced=True,
                    default=AUTO,
                    tooltip="The prompt with {} for the concept's phrase. auto is by type: a photo of the {} (object), "
                    "a photo of {} (celebrity, explicit), a photo in the style of {} (style).",
                ),
                io.String.Input(
                    "negative",
                    advanced=True,
                    default="",
                    tooltip="Keeps what it names out of the images: the negative prompt.",
                ),
                io.Image.Input(
                    "images",
                    optional=True,
                    tooltip="Your own images in place of drawn ones, as a batch or a list, for a list of one concept. "
                    "Chain one node for each concept. All images of a chain have one size.",
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
            is_input_list=True,
        )

    @classmethod
    def validate_inputs(cls, prompt=(None,)):
        try:
            if prompt[0] is not None:
                template_of(Concept("x", "y", "object"), prompt[0])
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    @takes_lists(images=joined_pictures, more=joined_images)
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
        preset = preset_of(concepts)
        chained = chain(more, (replace(entry, preset=preset) for entry in made))
        pictures = written(entry.as_image for entry in chained)
        names = ", ".join(f"{entry.concept.target} ({len(entry)})" for entry in chained)
        preview = ui.PreviewImage(pictures[:SHOWN], cls=cls).as_dict()
        return io.NodeOutput(chained, pictures, ui={**preview, "text": (names,)})
