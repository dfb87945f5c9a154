"""SLD: safe latent diffusion, guidance away from the concepts while sampling."""

from dataclasses import replace

import comfy.samplers
from comfy.patcher_extension import WrappersMP
from comfy.sampler_helpers import convert_cond
from comfy_api.latest import io, ui

from ...mace.baselines.sld import CONFIGURATIONS, PUBLISHED_STEPS, SafetyGuidance, SafetySettings, step_at
from ...mace.baselines.words import joined
from ..schema import COMPARE, ConceptsType
from .negative import encoded

CUSTOM = "custom"
MEDIUM = CONFIGURATIONS["medium"]


class SafetyHooks:
    """What the host calls for one SLD node: around a sampling run, and after the guidance of every prediction.

    conditioning: the safety concept's. scaled: whether the warm-up counts in PUBLISHED_STEPS.
    """

    def __init__(self, settings: SafetySettings, conditioning, scaled: bool):
        self.settings, self.conditioning, self.scaled = settings, conditioning, scaled
        # Several SLD nodes may guide one run; each has its own conditioning in it.
        self.key = f"mace_safety_{id(self)}"
        self._run = None

    def around(self, executor, noise, latent_image, sampler, sigmas, *args, **kwargs):
        """The host's OUTER_SAMPLE wrapper: a run starts without momentum, and nothing of it is left after."""
        guider, schedule = executor.class_obj, sigmas.tolist()
        settings = self.settings
        if self.scaled:
            settings = replace(settings, warmup=settings.warmup * (len(schedule) - 1) / PUBLISHED_STEPS)
        # The host prepares a run's conditionings together; there the safety concept's gets its areas and latents too.
        guider.conds[self.key] = convert_cond(self.conditioning)
        outer, self._run = self._run, (guider, schedule, SafetyGuidance(settings))
        try:
            return executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
        finally:
            self._run = outer

    def guide(self, args):
        """The host's post-CFG function: the guided latent with gamma in it (see `mace.baselines.sld`).

        The host's latents are x = x_0 + sigma e, so the noise e of a prediction of x_0, whatever the model predicts,
        is (x - x_0) / sigma; and e less s_g gamma is x_0 plus s_g sigma gamma.
        """
        if self._run is None:
            raise RuntimeError("SLD cannot guide this sampler: it samples past ComfyUI's own guider")
        if args["uncond"] is None:
            raise ValueError(
                "SLD needs the prediction without the prompt: sample with a negative input (KSampler, CFGGuider)"
            )
        guider, schedule, guidance = self._run
        x, levels = args["input"], args["sigma"]
        (safety,) = comfy.samplers.calc_cond_batch(
            args["model"], [guider.conds[self.key]], x, levels, args["model_options"]
        )
        sigma = levels.view(-1, *[1] * (x.dim() - 1))
        noises = ((x - predicted) / sigma for predicted in (args["uncond_denoised"], args["cond_denoised"], safety))
        gamma = guidance(step_at(float(levels[0]), schedule), *noises)
        return args["denoised"] + args["cond_scale"] * sigma * gamma


class SafeLatentDiffusion(io.ComfyNode):
    """Guides every sampling with the model away from a safety concept."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        def number(name: str, default: float, most: float, step: float, tooltip: str):
            return io.Float.Input(
                name,
                default=default,
                min=0.0,
                max=most,
                step=step,
                advanced=True,
                tooltip=f"{tooltip} Counts with the preset custom alone.",
            )

        return io.Schema(
            node_id="MACE_BaselineSLD",
            display_name="SLD (MACE baseline)",
            category=COMPARE,
            description="Safe Latent Diffusion (Schramowski et al. 2023) in its published form, to compare MACE with: "
            "sampling is guided away from the concepts. The weights stay, so a saved checkpoint does not carry it.",
            search_aliases=["mace", "sld", "safe latent diffusion", "safety guidance", "baseline", "comparison"],
            inputs=[
                io.Model.Input("model", tooltip="The model to sample with."),
                io.Clip.Input("clip", tooltip="Its text encoder."),
                io.Combo.Input(
                    "preset",
                    options=[*CONFIGURATIONS, CUSTOM],
                    default="medium",
                    tooltip="From weak to max, pictures are led further away from the concept and change more. The "
                    "paper's configurations; custom takes the numbers below. MACE's tables are of medium.",
                ),
                ConceptsType.Input(
                    "concepts",
                    optional=True,
                    tooltip="What to guide away from, from Concepts: targets and aliases, with commas between.",
                ),
                io.String.Input(
                    "text",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="A safety concept of your own, in place of the concepts' names.",
                ),
                number(
                    "scale",
                    MEDIUM.scale,
                    1e6,
                    1.0,
                    "Larger leads further away. Guidance scale s_S; 0 is plain sampling.",
                ),
                number(
                    "warmup",
                    MEDIUM.warmup,
                    1e4,
                    1.0,
                    "More keeps the composition. Warm-up delta: the first steps, not guided.",
                ),
                number(
                    "threshold",
                    MEDIUM.threshold,
                    100.0,
                    0.001,
                    "Larger guides more of the picture. Threshold lambda, in units of the noise.",
                ),
                number(
                    "momentum", MEDIUM.momentum, 1.0, 0.05, "Larger goes on where it led before. Momentum scale s_m."
                ),
                number("beta", MEDIUM.beta, 0.99, 0.05, "Larger remembers more steps. Momentum's decay beta_m."),
                io.Boolean.Input(
                    "scale_warmup",
                    default=True,
                    advanced=True,
                    tooltip=f"The warm-ups were published for {PUBLISHED_STEPS} steps. On: the same share of a run "
                    "of any length (10 is one fifth). Off: that many steps.",
                ),
            ],
            outputs=[io.Model.Output("model", tooltip="The guided model, for a sampler with a negative input.")],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(
        cls,
        model,
        clip,
        preset,
        scale=MEDIUM.scale,
        warmup=MEDIUM.warmup,
        threshold=MEDIUM.threshold,
        momentum=MEDIUM.momentum,
        beta=MEDIUM.beta,
        scale_warmup=True,
        concepts=(),
        text="",
    ) -> io.NodeOutput:
        safety = text.strip() or joined(concepts)
        if not safety:
            raise ValueError("there is nothing to guide away from: connect concepts, or write a safety concept")
        settings = CONFIGURATIONS.get(preset) or SafetySettings(scale, warmup, threshold, momentum, beta)
        guided = model.clone()
        if settings.scale > 0:
            hooks = SafetyHooks(settings, encoded(clip, safety), scale_warmup)
            guided.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, hooks.key, hooks.around)
            # At a guidance of 1 the host leaves the prediction without the prompt out; gamma is made of it.
            guided.set_model_sampler_post_cfg_function(hooks.guide, disable_cfg1_optimization=True)
        numbers = ", ".join(f"{name} {value:g}" for name, value in vars(settings).items())
        return io.NodeOutput(guided, ui=ui.PreviewText(f"{safety}\n{numbers}"))
