"""Train Erasure LoRA: one LoRA a concept, several side by side (Section 3.2)."""

from comfy_api.latest import io, ui

from ...mace.concepts.concept import one_preset, preset_of
from ...mace.formats.lora_layouts import to_comfyui
from ...mace.method.loss import LOSSES
from ...mace.method.schedule import Cfis, Uniform
from ...mace.pipeline.train_options import TrainOptions
from ...mace.pipeline.written import AUTO, MOST_RATE, read_number
from ...mace.presets.presets import PAPER, Preset
from ..host.lora_files import slug
from ..host.model.unet import PROJECTIONS, REFINEMENT
from ..host.preset_files import find_preset, preset_stamp, presets
from ..lists import all_masks, joined_images, takes_lists
from ..schema import ERASE, OF_CONCEPTS, ImagesType, LorasType, number_input, seed_input
from ..stages.mask_making import fitted, whole_image, without_skipped
from ..stages.train import train_loras


class TrainErasureLora(io.ComfyNode):
    """Trains what the concept's own words carry out of the refined model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MACE_TrainErasureLora",
            display_name="Train Erasure LoRA (MACE)",
            category=ERASE,
            description="Trains one small LoRA for each concept on the refined model, several side by side: the model "
            "learns to look nowhere for the concept's words. LoRAs of concepts already trained are kept, so a longer "
            "list trains only what is new, and an interrupted run goes on where it stopped.",
            search_aliases=["mace", "lora", "erase", "unlearn", "train"],
            inputs=[
                io.Model.Input("model", tooltip="The refined model of CFR Refine."),
                io.Clip.Input("clip", tooltip="The text encoder that CFR Refine has."),
                ImagesType.Input("images", tooltip="From Concept Images; they bring their concepts along."),
                io.Combo.Input(
                    "preset",
                    options=[OF_CONCEPTS, *presets()],
                    default=OF_CONCEPTS,
                    tooltip="What auto means below: what was chosen in settings of Concepts (the paper's Table 10 by "
                    "type where nothing was), or another preset for this node alone.",
                ),
                number_input(
                    "rank",
                    usual=1,
                    advanced=True,
                    whole=True,
                    tooltip="Larger can change more, in what is erased and beside it. auto: the preset's (1 in Table "
                    "10). The rank of the LoRAs.",
                ),
                number_input(
                    "steps",
                    usual=50,
                    whole=True,
                    tooltip="More erase more and take longer. auto: the preset's (Table 10: 50, explicit 120). "
                    "Training steps for each concept.",
                ),
                number_input(
                    "learning_rate",
                    usual=1e-5,
                    tooltip="Larger erases more and touches more of the rest. auto: the preset's (Table 10: 1e-5 for "
                    "objects and explicit content, 1e-4 for people and styles). The rate of AdamW.",
                ),
                io.Combo.Input(
                    "loss",
                    options=[AUTO, *LOSSES],
                    default=AUTO,
                    advanced=True,
                    tooltip="How much attention to each of the concept's words counts: its square (Eq. 3 as printed), "
                    "or as it is (a sum of norms, as the published code computes it). auto: the preset's. On the demo "
                    "model they do not differ.",
                ),
                io.Combo.Input(
                    "end_of_text",
                    options=[AUTO, "no", "yes"],
                    default=AUTO,
                    advanced=True,
                    tooltip="yes erases more of the synonyms (on the demo model half as many are left): attention to "
                    "the end of the prompt (end-of-text and padding) is trained away too, as the published code does. "
                    "no: that of the concept's words alone, as Eq. 3 says. auto: the preset's.",
                ),
                io.Combo.Input(
                    "focus",
                    options=[AUTO, "no", "yes"],
                    default=AUTO,
                    advanced=True,
                    tooltip="yes leaves other prompts alone, and on the demo model erases more synonyms: the LoRAs "
                    "read only what tells the concept's words from the prior's captions (ours). no: they start at "
                    "random as the paper's do. auto: the preset's. Needs a prior with captions in CFR Refine.",
                ),
                io.Combo.Input(
                    "projections",
                    options=list(PROJECTIONS),
                    default="both",
                    advanced=True,
                    tooltip="What the LoRAs change: keys (to_k), values (to_v) or both, the paper's choice. On the "
                    "demo model keys alone erase less, values alone as much as both, and touch more.",
                ),
                io.Boolean.Input(
                    "cfis",
                    default=True,
                    advanced=True,
                    tooltip="On: by the paper spares what shares words with the concept, by training mostly at the "
                    "timesteps t1 to t2, where the concept takes shape (concept-focal importance sampling, Eq. 5). "
                    "Off: at all timesteps alike; on the demo model it hardly matters.",
                ),
                io.Int.Input(
                    "t1",
                    default=200,
                    min=0,
                    max=998,
                    advanced=True,
                    tooltip="Lower also trains where details are drawn: the lower end of where cfis trains most, in "
                    "timesteps (0 is the finished picture).",
                ),
                io.Int.Input(
                    "t2",
                    default=400,
                    min=1,
                    max=1000,
                    advanced=True,
                    tooltip="Higher also trains where the composition is drawn: the upper end of where cfis trains "
                    "most, in timesteps (1000 is noise alone).",
                ),
                io.Float.Input(
                    "gamma",
                    default=0.05,
                    min=0.001,
                    max=10.0,
                    step=0.01,
                    round=0.001,
                    advanced=True,
                    tooltip="Larger trains less beyond t1 and t2: how steeply the density of Eq. 5 falls off.",
                ),
                seed_input(
                    "Another seed gives another training of the same kind: initial values and draws, in "
                    "streams of its own for every concept."
                ),
                number_input(
                    "side_by_side",
                    usual=8,
                    whole=True,
                    advanced=True,
                    tooltip="More is quicker and takes more memory; the result is the same for any number. auto: one "
                    "is measured, and as many train as the free memory holds, at most 32. Concepts in one forward "
                    "pass.",
                ),
                io.Boolean.Input(
                    "save_memory",
                    default=False,
                    advanced=True,
                    tooltip="Less than half of the memory beside the model (for one concept 0.4 GB in place of 0.9 in "
                    "SD1.5, 2.9 in place of 6.2 in SDXL), and up to three times as long: the model's blocks are "
                    "computed a second time in the backward pass (gradient checkpointing). Off: only where one "
                    "concept does not fit without.",
                ),
                io.Mask.Input(
                    "masks",
                    optional=True,
                    tooltip="From Mask Concept or any node, a batch or a list, one for each image in order; an image "
                    "with an empty mask is skipped. Without: the whole image.",
                ),
                io.Boolean.Input(
                    "again",
                    optional=True,
                    default=False,
                    advanced=True,
                    tooltip="Train again what was trained before. LoRAs are kept on disk by everything they depend on, "
                    "also when ComfyUI is restarted; training that was stopped goes on from its last 25th step.",
                ),
            ],
            outputs=[
                LorasType.Output("loras", tooltip="All erasure LoRAs, for Fuse LoRAs and Save Erasure LoRAs."),
                io.Custom("LORA_MODEL").Output(
                    "lora_models", is_output_list=True, tooltip="One a concept, for Save LoRA Weights and Load LoRA."
                ),
                io.Custom("LOSS_MAP").Output(
                    "losses", is_output_list=True, tooltip="One a concept, for Plot Loss Graph."
                ),
                io.String.Output(
                    "names", is_output_list=True, tooltip="A file name prefix for each concept, for those nodes."
                ),
            ],
            has_intermediate_output=True,
            is_input_list=True,
        )

    @classmethod
    def validate_inputs(
        cls,
        rank=(None,),
        steps=(None,),
        learning_rate=(None,),
        side_by_side=(None,),
        cfis=(None,),
        t1=(None,),
        t2=(None,),
    ):
        try:
            read_options(*(given[0] for given in (rank, steps, learning_rate, side_by_side)))
            if cfis[0] and t1[0] is not None and t2[0] is not None:
                Cfis(t1[0], t2[0])
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, preset=(PAPER,), **_):
        return preset_stamp(preset[0])

    @classmethod
    @takes_lists(images=joined_images, masks=all_masks)
    def execute(
        cls,
        model,
        clip,
        images,
        preset,
        rank,
        steps,
        learning_rate,
        loss,
        end_of_text,
        focus,
        projections,
        cfis,
        t1,
        t2,
        gamma,
        seed,
        side_by_side,
        save_memory,
        masks=None,
        again=False,
    ) -> io.NodeOutput:
        if preset == OF_CONCEPTS:
            refinement = model.get_attachment(REFINEMENT)
            carried = () if refinement is None else (preset_of(refinement.concepts),)
            preset = one_preset([*carried, *(entry.preset for entry in images)])
        how = dict(rank=rank, steps=steps, learning_rate=learning_rate, side_by_side=side_by_side, loss=loss)
        how |= dict(end_of_text=end_of_text, focus=focus, cfis=cfis, t1=t1, t2=t2, gamma=gamma, seed=seed)
        how |= dict(projections=projections, save_memory=save_memory, again=again)
        options = read_training(find_preset(preset), **how)
        given = [whole_image(entry) for entry in images] if masks is None else fitted(masks, images)
        kept = [without_skipped(entry, mask) for entry, mask in zip(images, given, strict=True)]
        loras, lines = train_loras(model, clip, [entry for entry, *_ in kept], [mask for _, mask, _ in kept], options)
        if preset not in ("", PAPER):
            lines.insert(0, f"auto: {preset}")
        lines += [line for *_, notes in kept for line in notes]
        return io.NodeOutput(
            loras,
            [to_comfyui(entry.lora) for entry in loras.loras],
            [{"loss": [float(value) for value in entry.losses]} for entry in loras.loras],
            [f"loras/mace_{slug(entry.concept.target)}" for entry in loras.loras],
            ui=ui.PreviewText("\n".join(lines)),
        )


def read_training(
    chosen: Preset, *, loss, end_of_text, focus, cfis, t1, t2, gamma, rank, steps, learning_rate, side_by_side, **same
) -> TrainOptions:
    """The node's settings as the stage takes them. chosen: what auto stands for.  same: those of one name in both.

    Raises ValueError.
    """
    return TrainOptions(
        **read_options(rank, steps, learning_rate, side_by_side),
        **same,
        form=chosen.loss if loss == AUTO else loss,
        end_of_text=chosen.end_of_text if end_of_text == AUTO else end_of_text == "yes",
        timesteps=Cfis(t1, t2, gamma) if cfis else Uniform(),
        focus=chosen.focus if focus == AUTO else focus == "yes",
        by_type=chosen.lora,
    )


def read_options(rank, steps, learning_rate, side_by_side) -> dict:
    """The numbers, written or linked, as `TrainOptions` takes them. Raises ValueError."""
    return {
        "rank": read_number("rank", rank, 128, whole=True),
        "steps": read_number("steps", steps, 100_000, whole=True),
        "learning_rate": read_number("learning_rate", learning_rate, MOST_RATE),
        "side_by_side": read_number("side_by_side", side_by_side, 1024, whole=True),
    }
