"""Evaluate Erasure: what a judge sees in pictures of the base and of the erased model."""

import json
import math

import comfy.samplers
from comfy_api.latest import io

from ...mace.concepts.subjects import parse_names, parse_synonyms, parse_templates, subjects
from ...mace.pipeline.evaluation import BASE, CLASSIFIER, CLIP, ERASED_MODEL, NUDENET, Plan, evaluate
from ..host import files
from ..host.gallery import galleries
from ..host.judges.judge_files import KINDS, file_error, file_stamps, judge_files
from ..host.judges.judges import judge_of
from ..host.model.family import sized
from ..schema import MEASURE, ConceptsType, sampling_inputs, seed_input, side_inputs
from .evaluation_report import contact_sheet, table_text


class EvaluateErasure(io.ComfyNode):
    """The paper's accuracies and harmonic means, with intervals, and pictures side by side."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MACE_EvaluateErasure",
            display_name="Evaluate Erasure (MACE)",
            category=MEASURE,
            description="Draws the erased concepts, their synonyms and what is to stay with both models from the same "
            "noise, has a judge name what it sees, and gives the paper's accuracies and harmonic mean with intervals. "
            "Pictures already drawn are kept, so another seed or name draws only what is new.",
            search_aliases=["mace", "evaluate", "benchmark", "metrics", "accuracy", "clip score", "nudenet", "fid"],
            inputs=[
                io.Model.Input("model", tooltip="The base model, from before the erasure."),
                io.Model.Input("erased_model", tooltip="The erased model, of Fuse LoRAs or any node or checkpoint."),
                io.Clip.Input("clip", tooltip="The text encoder of both."),
                io.Vae.Input("vae", tooltip="The VAE of both."),
                ConceptsType.Input("concepts", tooltip="What was erased, from Concepts, with its aliases."),
                io.String.Input(
                    "synonyms",
                    multiline=True,
                    dynamic_prompts=False,
                    default="",
                    placeholder="dog | canine, hound",
                    tooltip="Shows whether the concept comes back by another name: words that were not named when "
                    "erasing, one concept a line (dog | canine, hound). They give Acc_g, and H becomes H_o of Eq. 8. "
                    "Empty: H is H_c of Eq. 9.",
                ),
                io.String.Input(
                    "keep",
                    multiline=True,
                    dynamic_prompts=False,
                    default="",
                    placeholder="hot dog, cat, wolf",
                    tooltip="Shows what the erasing costs: names of what is to stay, one a line or separated by "
                    "commas. They give Acc_s; without them there is no H.",
                ),
                io.String.Input(
                    "prompts",
                    multiline=True,
                    dynamic_prompts=False,
                    default="a photo of the {}",
                    advanced=True,
                    tooltip="More prompts make the figures surer and take longer. One a line, with {} for the name; "
                    "every name is drawn with each.",
                ),
                seed_input(
                    "The first seed. Both models draw from the same noise, a KSampler's of this seed.", advanced=True
                ),
                io.Int.Input(
                    "seeds",
                    default=4,
                    min=1,
                    max=1000,
                    tooltip="More make the figures surer and take longer. Pictures for each prompt, of seeds counted "
                    "up from seed.",
                ),
                *side_inputs("the pictures"),
                *sampling_inputs(
                    "More draw cleaner pictures and take longer. Sampling steps (the paper: 50).",
                    "Higher follows the prompt more. Guidance scale.",
                ),
                io.Combo.Input(
                    "sampler_name",
                    advanced=True,
                    options=comfy.samplers.KSampler.SAMPLERS,
                    default="ddim",
                    tooltip="Another one draws other pictures of the same kind: the sampler; the paper's is ddim. "
                    "Samplers that draw noise at every step (ancestral, SDE) draw one picture at a time, so that the "
                    "noise stays the same.",
                ),
                io.Combo.Input(
                    "scheduler",
                    advanced=True,
                    options=comfy.samplers.KSampler.SCHEDULERS,
                    default="normal",
                    tooltip="Another one takes the noise away in other shares a step: the scheduler.",
                ),
                io.Int.Input(
                    "batch_size",
                    advanced=True,
                    default=8,
                    min=1,
                    max=256,
                    tooltip="Larger is faster and takes more memory. Pictures drawn and judged together.",
                ),
                io.Combo.Input(
                    "judge",
                    options=list(KINDS),
                    default=CLIP,
                    tooltip=f"{CLIP}: which of all names is most like the picture; also CLIP scores. {NUDENET}: counts "
                    f"of exposed body parts, as in Table 2. {CLASSIFIER}: a classifier with names of its own.",
                ),
                io.Combo.Input(
                    "judge_file",
                    options=[files.NONE, *judge_files()],
                    default=files.NONE,
                    tooltip=f"The judge's file or folder, in models/{files.JUDGES}; CLIP models also in models/"
                    "clip_vision (whole ones, in folders). Nothing is downloaded. NudeNet needs none.",
                ),
                io.Float.Input(
                    "threshold",
                    default=0.6,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    advanced=True,
                    tooltip="Lower counts more, also what is none. NudeNet's detections count from this score on "
                    "(the paper: 0.6).",
                ),
            ],
            outputs=[
                io.String.Output("table", tooltip="All measures in words."),
                io.String.Output("results", tooltip="All measures as JSON."),
                io.Image.Output("sheet", tooltip="Contact sheet: a row for each name, base and erased side by side."),
                io.Float.Output("acc_e", tooltip="Top-1 accuracy of the erased model on what was erased, 0 to 1."),
                io.Float.Output("acc_s", tooltip="On what is kept, 0 to 1; NaN without names to keep."),
                io.Float.Output("acc_g", tooltip="On synonyms, 0 to 1; NaN without synonyms."),
                io.Float.Output("h", tooltip="Their harmonic mean, H_o or H_c, 0 to 1; NaN without names to keep."),
            ],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, synonyms=None, keep=None, prompts=None, judge=None, judge_file=None):
        try:
            parse_synonyms(synonyms or "")
            parse_names(keep or "", "keep")
            if prompts is not None:
                parse_templates(prompts)
        except ValueError as error:
            return str(error)
        if judge is not None and judge not in KINDS:
            return f"judge: {judge!r} is none of {', '.join(KINDS)}"
        problem = None if judge is None or judge_file is None else file_error(judge, judge_file)
        return True if problem is None else problem

    @classmethod
    def fingerprint_inputs(cls, judge_file=files.NONE, **_):
        return file_stamps(judge_file)

    @classmethod
    def execute(
        cls,
        model,
        erased_model,
        clip,
        vae,
        concepts,
        synonyms,
        keep,
        prompts,
        seed,
        seeds,
        batch_size,
        judge,
        judge_file,
        threshold,
        **settings,
    ) -> io.NodeOutput:
        if vae is None:
            raise ValueError("the vae input is empty: this checkpoint has none; connect Load VAE")
        plan = Plan(
            subjects(concepts, synonyms, keep), tuple(parse_templates(prompts)), tuple(range(seed, seed + seeds))
        )
        width, height = sized(model, settings["width"], settings["height"])
        settings = {**settings, "width": width, "height": height}
        chosen = judge_of(judge, judge_file)
        models = {BASE: model, ERASED_MODEL: erased_model}
        shown = galleries(models, clip, vae, chosen, plan.asked, settings, batch_size)
        found = evaluate(shown, plan, chosen, settings, threshold)
        text = table_text(found)
        top = found.results.get("top-1", {})
        numbers = [top.get(name, {}).get(ERASED_MODEL, {}).get("value") for name in ("Acc_e", "Acc_s", "Acc_g", "H")]
        return io.NodeOutput(
            text,
            json.dumps(found.results, indent=1, ensure_ascii=False),
            contact_sheet(found),
            *(math.nan if number is None else number for number in numbers),
            ui={"text": (text,)},
        )
