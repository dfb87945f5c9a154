"""Forget-Me-Not (Zhang et al. 2023, arXiv 2303.17591): attention to the concept's words is trained away."""

import torch
from comfy_api.latest import io
from torch import Tensor

from ...mace.baselines.fitting import Fit
from ...mace.baselines.parts import cross_attention, keys_and_values, whole
from ...mace.method.loss import SQUARED, spread_over
from ...mace.method.schedule import Uniform
from ...mace.method.tokens import fill
from ...mace.pipeline.attention_loss import Batch, losses
from ..host.model.forward import ModelDenoiser
from ..host.model.predict import noisy
from ..host.text import TextEncoder
from ..schema import COMPARE, ImagesType, seed_input
from .inputs import OTHER_DRAWS, checked_rate, outputs, rate_input, rate_of, steps_input
from .trainee import Texts, Trainee, result, train_baseline

PARTS = {"cross-attention": cross_attention, "keys and values": keys_and_values, "full": whole}
# AdamW and the clip are the release's too.
STEPS, RATE, DECAY, CLIP = 35, 2e-6, 0.01, 1.0


class BaselineFMN(io.ComfyNode):
    """Forget-Me-Not's attention resteering."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MACE_BaselineFMN",
            display_name="Forget-Me-Not (MACE baseline)",
            category=COMPARE,
            description="Forget-Me-Not (Zhang et al. 2023), to compare MACE with: attention resteering trains the "
            "attention to the concept's words towards zero, over whole images of the concept.",
            search_aliases=["mace", "fmn", "attention resteering", "erase", "unlearn", "baseline"],
            inputs=[
                io.Model.Input("model", tooltip="The model to erase from."),
                io.Clip.Input("clip", tooltip="Its text encoder."),
                ImagesType.Input(
                    "images",
                    tooltip="From Concept Images; they bring their concepts and prompts along. Mappings and aliases "
                    "play no part.",
                ),
                io.Combo.Input(
                    "train",
                    options=list(PARTS),
                    tooltip="Less that is trained keeps more of everything else: all weights of the cross-attentions "
                    "(the code's only_optimize_ca), their keys and values alone, or the whole UNet (the code's "
                    "example).",
                ),
                io.Boolean.Input(
                    "end_of_text",
                    default=False,
                    tooltip="On forgets more, and harms other prompts more: the attention to end-of-text and the "
                    "padding is trained away too, as the code's example does. Off: the concept's words alone.",
                ),
                steps_input(STEPS, "35"),
                rate_input(RATE, "AdamW"),
                io.Int.Input(
                    "batch",
                    default=1,
                    min=1,
                    max=64,
                    tooltip="Larger learns more steadily, takes longer and more memory. Images in a training step, "
                    "each with its own concept and timestep. Published: 1.",
                ),
                seed_input(OTHER_DRAWS),
            ],
            outputs=outputs("the trained weights"),
            has_intermediate_output=True,
        )

    @classmethod
    def validate_inputs(cls, learning_rate=None):
        return checked_rate(learning_rate, RATE)

    @classmethod
    def execute(cls, model, clip, images, train, end_of_text, steps, learning_rate, batch, seed) -> io.NodeOutput:
        settings = Fit(steps, rate_of(learning_rate, RATE), DECAY, CLIP, seed)
        encoder = TextEncoder(clip)
        concepts = [entry.concept for entry in images]
        prompts = [fill(entry.template, entry.concept.target) for entry in images]
        texts = Texts.of(encoder, model, prompts)
        positions = []
        for entry, prompt in zip(images, prompts, strict=True):
            own = encoder.pair(entry.template, entry.concept.target, entry.concept.mapping).phrase
            positions.append(spread_over(own, encoder.length(prompt) + 1, encoder.window, end_of_text))

        def prepare(trainee: Trainee, progress):
            copy, device = trainee.copy, trainee.device
            latents = [entry.latents.to(device, torch.float32, copy=True) for entry in images]
            tokens = torch.zeros(len(images), encoder.window, device=device)
            for row, own in enumerate(positions):
                tokens[row, list(own)] = 1

            def loss_of(generator: torch.Generator) -> Tensor:
                rows = torch.randint(len(images), (batch,), generator=generator).tolist()
                shown = torch.stack(
                    [latents[row][int(torch.randint(len(latents[row]), (), generator=generator))] for row in rows]
                )
                noise = torch.randn(shown.shape, generator=generator).to(device)
                x, sigmas = noisy(copy, shown, noise, Uniform().sample(batch, generator))
                pooled = None if trainee.pooled is None else trainee.pooled[rows]
                # Nothing is masked: one cell covers the image.
                everywhere = torch.ones(batch, 1, 1)
                drawn = Batch(x, sigmas, trainee.contexts[rows], tokens[rows], everywhere, pooled)
                return trainee.edited(lambda: losses(ModelDenoiser(copy), drawn, {}, SQUARED)).mean()

            return loss_of

        names = [concept.target for concept in concepts]
        changes, history = train_baseline(model, PARTS[train], texts, settings, names, prepare)
        record = dict(train=train, end_of_text=end_of_text, steps=steps, learning_rate=settings.learning_rate)
        record |= dict(batch=batch, seed=seed, weight_decay=DECAY, clip=CLIP)
        return result(model, clip, "baseline FMN", concepts, record, changes, history)
