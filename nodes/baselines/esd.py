"""ESD (Gandikota et al. 2023, arXiv 2303.07345): the model learns from its own negative guidance."""

import torch
from comfy_api.latest import io

from ...mace.baselines.fitting import Fit
from ...mace.baselines.objectives import denoised, descent, esd_loss
from ...mace.baselines.parts import cross_attention, unconditional
from ...mace.concepts.concept import Concept
from ...mace.method.schedule import Uniform
from ...mace.method.tokens import fill
from ..host.model.family import sized
from ..host.text import TextEncoder
from ..schema import COMPARE, ConceptsType, seed_input, side_inputs
from ..stages.images import template_of
from .inputs import OTHER_DRAWS, checked_rate, outputs, rate_input, rate_of, steps_input
from .trainee import Texts, Trainee, result, train_baseline

METHODS = {"ESD-x (cross-attention)": cross_attention, "ESD-u (all but cross-attention)": unconditional}
STEPS, RATE = 1000, 1e-5


class BaselineESD(io.ComfyNode):
    """Erased Stable Diffusion."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MACE_BaselineESD",
            display_name="ESD (MACE baseline)",
            category=COMPARE,
            description="Erased Stable Diffusion (Gandikota et al. 2023), to compare MACE with: trains the model to "
            "predict, for the concept, what its old self predicts when guided away from it.",
            search_aliases=["mace", "esd", "erase", "unlearn", "baseline", "negative guidance"],
            inputs=[
                io.Model.Input("model", tooltip="The model to erase from."),
                io.Clip.Input("clip", tooltip="Its text encoder."),
                ConceptsType.Input(
                    "concepts",
                    tooltip="What to erase, from Concepts. Each step draws one of the targets and aliases; mappings "
                    "play no part.",
                ),
                io.Combo.Input(
                    "method",
                    options=list(METHODS),
                    tooltip="ESD-x erases what is named in the prompt and keeps more of everything else; it trains "
                    "all weights of the cross-attentions. ESD-u erases what comes unnamed too; it trains all others "
                    "but the timestep's embedding and the last convolution.",
                ),
                steps_input(STEPS, "1000"),
                rate_input(RATE, "Adam"),
                io.Float.Input(
                    "eta",
                    display_name="negative guidance eta",
                    default=1.0,
                    min=0.0,
                    max=30.0,
                    step=0.1,
                    tooltip="Larger erases more, and changes more of everything else. How far the prediction is to "
                    "be led away from the concept (eta, without unit). Published: 1.",
                ),
                io.Float.Input(
                    "start_guidance",
                    default=3.0,
                    advanced=True,
                    min=0.0,
                    max=30.0,
                    step=0.5,
                    tooltip="Higher trains on samples that show the concept more clearly. Their guidance scale. "
                    "Published: 3.",
                ),
                io.Int.Input(
                    "sampling_steps",
                    default=50,
                    advanced=True,
                    min=1,
                    max=1000,
                    tooltip="Fewer are faster, and train on rougher samples. DDIM steps that a whole sample would "
                    "take; half of them are made in each training step on average, with two predictions each. "
                    "Published: 50.",
                ),
                io.Int.Input(
                    "batch",
                    default=1,
                    advanced=True,
                    min=1,
                    max=64,
                    tooltip="Larger learns more steadily, takes longer and more memory. Samples in a training step, "
                    "of one concept and one timestep. Published: 1.",
                ),
                *side_inputs("the samples"),
                io.String.Input(
                    "prompt",
                    default="{}",
                    advanced=True,
                    tooltip="The prompt that is erased, with {} for the concept's phrase. Published: the phrase alone. "
                    "auto: by type, as in Concept Images.",
                ),
                seed_input(OTHER_DRAWS),
            ],
            outputs=outputs("the trained weights"),
            has_intermediate_output=True,
        )

    @classmethod
    def validate_inputs(cls, learning_rate=None, prompt=None):
        try:
            if prompt is not None:
                template_of(Concept("x", "y", "object"), prompt)
        except ValueError as error:
            return str(error)
        return checked_rate(learning_rate, RATE)

    @classmethod
    def execute(
        cls,
        model,
        clip,
        concepts,
        method,
        steps,
        learning_rate,
        eta,
        start_guidance,
        sampling_steps,
        batch,
        width,
        height,
        prompt,
        seed,
    ) -> io.NodeOutput:
        settings = Fit(steps, rate_of(learning_rate, RATE), seed=seed)
        size = sized(model, width, height)
        prompts = [fill(template_of(concept, prompt), phrase) for concept in concepts for phrase in concept.phrases]
        texts = Texts.of(TextEncoder(clip), model, ["", *prompts])

        def prepare(trainee: Trainee, progress):
            def loss_of(generator: torch.Generator) -> torch.Tensor:
                row = 1 + int(torch.randint(len(prompts), (), generator=generator))
                timestep = int(Uniform().sample(1, generator))
                noise = trainee.noise(batch, size, generator)
                sigmas = trainee.sigmas(descent(sampling_steps, timestep))
                concept, nothing = trainee.rows([row] * batch), trainee.rows([0] * batch)
                start = trainee.start(noise, sigmas[0])
                x = denoised(trainee.predict, start, sigmas.tolist(), concept, nothing, start_guidance)
                level = sigmas[-1].expand(batch)
                return esd_loss(trainee.predict, trainee.original, x, level, concept, nothing, eta)

            return loss_of

        names = [concept.target for concept in concepts]
        changes, losses = train_baseline(model, METHODS[method], texts, settings, names, prepare)
        record = dict(method=method, steps=steps, learning_rate=settings.learning_rate, eta=eta, prompt=prompt)
        record |= dict(start_guidance=start_guidance, sampling_steps=sampling_steps, batch=batch, seed=seed)
        return result(model, clip, "baseline ESD", concepts, record, changes, losses)
