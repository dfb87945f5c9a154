"""Concept Ablation (Kumari et al. 2023, arXiv 2303.13516): the target's prompts learn to give what the anchor's do."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from comfy_api.latest import io
from torch import Tensor

from ...mace.baselines.fitting import Fit
from ...mace.baselines.objectives import ablation_loss, denoised, descent
from ...mace.baselines.parts import keys_and_values, whole
from ...mace.concepts.concept import Concept
from ...mace.method.schedule import Uniform
from ...mace.method.tokens import fill
from ...mace.method.train import stream
from ..host.model.family import sized
from ..host.progress import LossProgress, send_text
from ..host.text import TextEncoder
from ..schema import COMPARE, ConceptsType, seed_input, side_inputs
from .inputs import OTHER_DRAWS, checked_rate, outputs, rate_input, rate_of, steps_input
from .trainee import Texts, Trainee, result, train_baseline

PARTS = {"cross-attention (to_k, to_v)": keys_and_values, "full": whole}
# 2e-6 times the batch of 8, as released (two devices with 4 each). AdamW and the clip are the release's too.
STEPS, RATE, DECAY, CLIP = 100, 1.6e-5, 0.01, 1.0


@dataclass(frozen=True)
class Picture:
    """The rows of an anchor image's prompt, and of that prompt with each of the target's phrases."""

    anchor: int
    targets: tuple[int, ...]


def plan(concepts: Sequence[Concept], count: int) -> tuple[list[str], list[Picture]]:
    """(prompts, row 0 the empty one; `count` pictures for each concept, its prompts in turn)."""
    prompts, pictures = [""], []
    for concept in concepts:
        rows = []
        for template in concept.prompts[:count]:
            filled = [fill(template, phrase) for phrase in (concept.mapping, *concept.phrases)]
            rows.append(Picture(len(prompts), tuple(range(len(prompts) + 1, len(prompts) + len(filled)))))
            prompts += filled
        pictures += [rows[i % len(rows)] for i in range(count)]
    return prompts, pictures


def anchor_images(
    trainee: Trainee,
    pictures: Sequence[Picture],
    batch: int,
    size: tuple[int, int],
    steps: int,
    guidance: float,
    seed: int,
    progress: LossProgress,
) -> Tensor:
    """Latents [n, ch, h, w] of the anchor prompts in the model's own scale, drawn by the original model."""
    generator = stream(seed, "baseline", "anchor images")
    sigmas = trainee.sigmas(descent(steps, 0))
    made = []
    for first in range(0, len(pictures), batch):
        part = pictures[first : first + batch]
        send_text(f"anchor images: {first} of {len(pictures)}")
        start = trainee.start(trainee.noise(len(part), size, generator), sigmas[0])
        prompts, nothing = trainee.rows([picture.anchor for picture in part]), trainee.rows([0] * len(part))
        made.append(denoised(trainee.original, start, [*sigmas.tolist(), 0.0], prompts, nothing, guidance))
        progress.skip(len(part))
    return torch.cat(made)


class BaselineAC(io.ComfyNode):
    """Concept Ablation, model-based."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MACE_BaselineAC",
            display_name="Concept Ablation (MACE baseline)",
            category=COMPARE,
            description="Concept Ablation (Kumari et al. 2023), model-based, to compare MACE with: trains the model to "
            "predict, for prompts with the target, what it predicts for the same prompts with the mapping.",
            search_aliases=["mace", "ac", "concept ablation", "anchor", "erase", "unlearn", "baseline"],
            inputs=[
                io.Model.Input("model", tooltip="The model to erase from."),
                io.Clip.Input("clip", tooltip="Its text encoder."),
                ConceptsType.Input(
                    "concepts",
                    tooltip="What to erase, from Concepts. The mapping is the anchor concept: what the target is to "
                    "become. Images of all concepts are drawn from alike.",
                ),
                io.Combo.Input(
                    "train",
                    options=list(PARTS),
                    tooltip="Keys and values of the cross-attentions keep more of everything else, as published for "
                    "objects and styles; the whole UNet can change more.",
                ),
                steps_input(STEPS, "100"),
                rate_input(RATE, "2e-6 times the batch of 8, AdamW"),
                io.Int.Input(
                    "batch",
                    default=8,
                    advanced=True,
                    min=1,
                    max=64,
                    tooltip="Larger learns more steadily, takes longer and more memory. Images in a training step, "
                    "each with its own timestep. Published: 8.",
                ),
                io.Int.Input(
                    "images",
                    default=200,
                    min=1,
                    max=2000,
                    tooltip="Fewer are faster. Anchor images for each concept, drawn by the model itself. Published: "
                    "1000 in the paper, 200 in the code.",
                ),
                io.Int.Input(
                    "sampling_steps",
                    default=50,
                    advanced=True,
                    min=1,
                    max=1000,
                    tooltip="Fewer are faster. DDIM steps of the anchor images.",
                ),
                io.Float.Input(
                    "guidance",
                    default=6.0,
                    advanced=True,
                    min=0.0,
                    max=30.0,
                    step=0.5,
                    tooltip="Higher draws anchor images that show the mapping more clearly. Their guidance scale; "
                    "the code's examples sample with 6.",
                ),
                *side_inputs("the anchor images"),
                seed_input(OTHER_DRAWS),
            ],
            outputs=outputs("the trained weights"),
            has_intermediate_output=True,
        )

    @classmethod
    def validate_inputs(cls, learning_rate=None):
        return checked_rate(learning_rate, RATE)

    @classmethod
    def execute(
        cls,
        model,
        clip,
        concepts,
        train,
        steps,
        learning_rate,
        batch,
        images,
        sampling_steps,
        guidance,
        width,
        height,
        seed,
    ) -> io.NodeOutput:
        settings = Fit(steps, rate_of(learning_rate, RATE), DECAY, CLIP, seed)
        prompts, pictures = plan(concepts, images)
        size = sized(model, width, height)
        texts = Texts.of(TextEncoder(clip), model, prompts)

        def prepare(trainee: Trainee, progress: LossProgress):
            latents = anchor_images(trainee, pictures, batch, size, sampling_steps, guidance, seed, progress)

            def loss_of(generator: torch.Generator) -> Tensor:
                chosen = torch.randint(len(pictures), (batch,), generator=generator).tolist()
                shown = [pictures[place] for place in chosen]
                sigmas = trainee.sigmas(Uniform().sample(batch, generator).tolist())
                x = trainee.noised(latents[chosen], trainee.noise(batch, size, generator), sigmas)
                phrases = [int(torch.randint(len(picture.targets), (), generator=generator)) for picture in shown]
                target = [picture.targets[phrase] for picture, phrase in zip(shown, phrases, strict=True)]
                anchor = [picture.anchor for picture in shown]
                return ablation_loss(trainee.predict, x, sigmas, trainee.rows(target), trainee.rows(anchor))

            return loss_of

        names = [concept.target for concept in concepts]
        changes, losses = train_baseline(model, PARTS[train], texts, settings, names, prepare, len(pictures))
        record = dict(train=train, steps=steps, learning_rate=settings.learning_rate, batch=batch, images=images)
        record |= dict(sampling_steps=sampling_steps, guidance=guidance, seed=seed, weight_decay=DECAY, clip=CLIP)
        return result(model, clip, "baseline AC", concepts, record, changes, losses)
