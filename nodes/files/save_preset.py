"""Save Preset: settings that were found for a model, as a file."""

from pathlib import Path

from comfy_api.latest import io, ui

from ...mace.method.loss import LOSSES, SQUARED
from ...mace.pipeline.fusion import TOWARDS, pull_name
from ...mace.pipeline.refine import EMBEDDINGS, MEASURES, PAPER, RELEASED
from ...mace.pipeline.written import AUTO, read_weight
from ...mace.presets.presets import PRESETS
from ...mace.presets.writing import fuse_part, lora_rows, preset_text, refine_part
from ..host import files
from ..host.prefixes import prefix_error
from ..host.preset_files import preset_files
from ..schema import FILES, number_input

REFINE, FUSE = ("lambda1", "lambda3", "mu"), ("lambda2", "fuse_lambda3", "fuse_mu")


def read_growing(name: str, given: str | float | None) -> float | tuple[float, ...] | None:
    """A weight, or `number, power, n` for one that grows with the list; None for auto. Raises ValueError."""
    if not isinstance(given, str) or "," not in given:
        return read_weight(name, given)
    try:
        parts = tuple(float(part) for part in given.split(","))
    except ValueError:
        parts = ()
    if len(parts) != 3:
        raise ValueError(f"{name}: {given!r} is neither a number nor number, power, n, as in: 1e-4, 1, 10")
    return parts


def written_preset(
    name: str,
    found_on: str,
    lambda1=AUTO,
    lambda3=AUTO,
    mu=AUTO,
    mu_measures: str = EMBEDDINGS,
    lora: str = "",
    loss: str = SQUARED,
    end_of_text: bool = True,
    focus: bool = False,
    lambda2=AUTO,
    fuse_lambda3=AUTO,
    fuse_mu=AUTO,
    lambda1_form: str = PAPER,
    closed_form: bool = False,
    pull: str = pull_name(None),
) -> str:
    """The text of the file. Raises ValueError."""
    weights = {key: read_growing(key, value) for key, value in zip(REFINE, (lambda1, lambda3, mu), strict=True)}
    fused = {key: read_growing(key, value) for key, value in zip(FUSE, (lambda2, fuse_lambda3, fuse_mu), strict=True)}
    settings = {
        "lora": lora_rows(lora),
        "refine": refine_part(weights, MEASURES[mu_measures]),
        "fuse": fuse_part(fused, TOWARDS[pull]),
        "loss": None if loss == SQUARED else loss,
        "end_of_text": end_of_text,
        "focus": focus or None,
        "lambda1_squared": lambda1_form == RELEASED or None,
        "closed_form": closed_form or None,
    }
    return preset_text(name, found_on, settings)


class SavePreset(io.ComfyNode):
    """Writes settings as JSON, one file for the model they were found on."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        grows = "auto: left to Table 10. Or three numbers, number, power, n: it grows with lists longer than n, as "
        grows += "(length / n)^power."
        return io.Schema(
            node_id="MACE_SavePreset",
            display_name="Save Preset (MACE)",
            category=FILES,
            description="Saves settings that you found for a model, under a name that Concepts and Erase Concepts then "
            "offer. What is left as it is here is the paper's. The file can be shared: others put it into "
            f"models/{files.PRESET_FILES}.",
            search_aliases=["mace", "preset", "settings", "share", "gallery"],
            inputs=[
                io.String.Input(
                    "name", default="", placeholder="my model", tooltip="What the preset is called in the lists."
                ),
                io.String.Input(
                    "found_on",
                    multiline=True,
                    dynamic_prompts=False,
                    default="",
                    placeholder="my model v2, 1 and 10 objects, 4000 built-in captions",
                    tooltip="For which model, prior and lists the settings were found, and what you saw: others "
                    "choose by it.",
                ),
                io.String.Input(
                    "filename_prefix",
                    default=f"{files.PRESET_FILES}/preset",
                    tooltip="Path inside the output folder; a counter is added and nothing is overwritten. Presets are "
                    f"looked for in output/{files.PRESET_FILES} and models/{files.PRESET_FILES}.",
                ),
                number_input(
                    "lambda1",
                    usual=1e-4,
                    optional=True,
                    tooltip=f"How much of what captions say is kept by CFR Refine (lambda1 of Eq. 1). {grows}",
                ),
                number_input(
                    "lambda3",
                    usual=1.0,
                    optional=True,
                    tooltip=f"How much of the concepts to preserve is kept by CFR Refine (lambda3 of Eq. 19). {grows}",
                ),
                number_input(
                    "mu",
                    usual=0.1,
                    display_name="identity weight mu",
                    optional=True,
                    tooltip=f"How much of everything else is kept by CFR Refine (Appendix C.2). {grows}",
                ),
                io.Combo.Input(
                    "mu_measures",
                    options=list(MEASURES),
                    default=EMBEDDINGS,
                    optional=True,
                    tooltip="What mu measures a change in, as in CFR Refine.",
                ),
                io.String.Input(
                    "lora",
                    optional=True,
                    multiline=True,
                    dynamic_prompts=False,
                    default="",
                    placeholder="style = 1, 50, 1.5e-3\n* = 1, 50, 5e-3",
                    tooltip="How the LoRAs of each type are trained, one type a line: type = rank, steps, learning "
                    "rate; * stands for all other types. Empty: Table 10.",
                ),
                io.Combo.Input(
                    "loss",
                    options=list(LOSSES),
                    default=SQUARED,
                    optional=True,
                    advanced=True,
                    tooltip="The loss of training, as in Train Erasure LoRA.",
                ),
                io.Boolean.Input(
                    "end_of_text",
                    default=True,
                    optional=True,
                    advanced=True,
                    tooltip="Attention to the end of the prompt is trained away too, as the paper's preset does; see "
                    "Train Erasure LoRA.",
                ),
                io.Boolean.Input(
                    "focus",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="LoRAs read only what tells the concept's words from captions, as in Train Erasure LoRA.",
                ),
                number_input(
                    "lambda2",
                    usual=1e-4,
                    optional=True,
                    advanced=True,
                    tooltip=f"How much of what captions say is kept by Fuse LoRAs (lambda2 of Eq. 7). {grows}",
                ),
                number_input(
                    "fuse_lambda3",
                    usual=1.0,
                    display_name="lambda3 of the fusion",
                    optional=True,
                    advanced=True,
                    tooltip=f"How much of the concepts to preserve is kept by Fuse LoRAs. {grows}",
                ),
                number_input(
                    "fuse_mu",
                    usual=0.1,
                    display_name="mu of the fusion",
                    optional=True,
                    advanced=True,
                    tooltip=f"How near Fuse LoRAs stays to the weights that pull names. {grows}",
                ),
                io.Combo.Input(
                    "lambda1_form",
                    options=[PAPER, RELEASED],
                    default=PAPER,
                    optional=True,
                    advanced=True,
                    tooltip="Whether lambda1 counts twice, as in the published code; see CFR Refine.",
                ),
                io.Boolean.Input(
                    "closed_form",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="Erase Concepts trains nothing with this preset: the refinement is all, and moves the "
                    "concepts' own words too, as CFR Refine does with own_words on.",
                ),
                io.Combo.Input(
                    "pull",
                    options=list(TOWARDS),
                    optional=True,
                    advanced=True,
                    tooltip="To which weights those of the fusion hold, as in Fuse LoRAs.",
                ),
            ],
            outputs=[],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, filename_prefix=None, lambda1=None, lambda3=None, mu=None, lora=None):
        wrong = filename_prefix is not None and prefix_error(filename_prefix)
        if wrong:
            return wrong
        try:
            for name, value in zip(REFINE, (lambda1, lambda3, mu), strict=True):
                read_growing(name, value)
            lora_rows(lora or "")
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, name, found_on, filename_prefix, **settings) -> io.NodeOutput:
        text = written_preset(name, found_on, **settings)
        called = " ".join(name.split())
        _, known = preset_files().get(called, (None, None))
        if known and Path(known).read_text(encoding="utf-8") == text:
            return io.NodeOutput(ui=ui.PreviewText(f"saved before: {known}"))
        if known or called in PRESETS:
            raise ValueError(f"there is a preset {called!r} already, and nothing is overwritten: give another name")
        path = files.save_text(filename_prefix, text, ".json")
        return io.NodeOutput(
            ui=ui.PreviewText(f"{path}\nRefresh the page's lists (R); then Concepts offers {called!r} in settings.")
        )
