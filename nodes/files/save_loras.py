"""Save Erasure LoRAs: a set for Load Erasure LoRAs, or files for other programs."""

from dataclasses import replace
from pathlib import Path

from comfy_api.latest import io, ui

from ...mace.formats.lora_set import ErasureLora, LoraSet
from ...mace.formats.lora_set_file import concept_metadata, set_to_file
from ..host import files
from ..host.kept.on_disk import held_together
from ..host.lora_files import FORMATS, search_note, slug, write_lora
from ..host.prefixes import expanded, prefix_error
from ..schema import FILES, LorasType

SET = "set (MACE)"


def describe(erasure: ErasureLora) -> str:
    """What a program that shows a LoRA's description should say of one concept's."""
    return (
        f"Erases {erasure.concept.target!r} (to {erasure.concept.mapping!r}). B A was trained on the refined weights "
        "W' of MACE and is exact only on the refined model; on the base model it erases less."
    )


class SaveLoras(io.ComfyNode):
    """Writes a set of erasure LoRAs as one file, or each LoRA in another program's layout."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MACE_SaveLoras",
            display_name="Save Erasure LoRAs (MACE)",
            category=FILES,
            description="Saves erasure LoRAs: all of them as a set for Load Erasure LoRAs and fusing, or one file a "
            "concept for Load LoRA, A1111, Forge and PEFT.",
            search_aliases=["mace", "save lora", "export lora", "kohya", "peft"],
            inputs=[
                LorasType.Input("loras", tooltip="The erasure LoRAs to save."),
                io.String.Input(
                    "filename_prefix",
                    default=f"{files.LORAS}/loras",
                    tooltip="Path inside the output folder; a counter is added, before it the concept where there is "
                    "one file each, and nothing is overwritten. Load Erasure LoRAs looks for sets in "
                    f"output/{files.LORAS}; Load LoRA looks in output/loras: for it write a name such as loras/erased.",
                ),
                io.Combo.Input(
                    "format",
                    options=[SET, *FORMATS],
                    default=SET,
                    tooltip="set: one file with all that fusing needs, for Load Erasure LoRAs. The others write one "
                    "LoRA a concept, for use on the refined model: ComfyUI for Load LoRA, kohya for A1111 and Forge "
                    "(Load LoRA reads it too), PEFT a folder for diffusers and peft.",
                ),
                io.Boolean.Input(
                    "moments",
                    default=False,
                    tooltip="Puts the concepts' moments and the prior into the set: 9 MB a concept for SD1.x. Fusing "
                    "the file then needs no CLIP and no prior. Has no effect in the other formats.",
                ),
            ],
            outputs=[],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, filename_prefix=None):
        return filename_prefix is None or prefix_error(filename_prefix) or True

    @classmethod
    def execute(cls, loras, filename_prefix, format, moments) -> io.NodeOutput:
        if not loras.loras:
            raise ValueError("there is no erasure LoRA to save: the set is empty")
        if format == SET:
            whole = _held_together(loras) if moments else loras
            paths = [files.save_safetensors(filename_prefix, *set_to_file(whole, moments))]
            lines = _missing(loras) if moments else []
        else:
            paths = _write_all(loras, filename_prefix, format)
            lines = search_note(paths, format)
            if moments:
                lines.append("moments are saved in sets only; this format has no place for them")
        return io.NodeOutput(ui=ui.PreviewText("\n".join([*map(str, paths), *lines])))


def _held_together(loras: LoraSet) -> LoraSet:
    """A set whose moments the file's writer, which takes all of them at once, may have without memory for all."""
    return replace(
        loras, loras=tuple(replace(own, moments=own.moments and held_together(own.moments)) for own in loras.loras)
    )


def _write_all(loras: LoraSet, prefix: str, layout: str) -> list[Path]:
    prefix = expanded(prefix)
    with files.all_or_none(prefix) as written:
        for erasure in loras.loras:
            written.append(
                write_lora(
                    layout,
                    f"{prefix}_{slug(erasure.concept.target)}",
                    erasure.lora,
                    loras.blocks,
                    loras.base,
                    describe(erasure),
                    concept_metadata(erasure),
                )
            )
    return written


def _missing(loras: LoraSet) -> list[str]:
    """What of the moments and the prior is not at hand, so that it is not in the file either."""
    without = [erasure.concept.target for erasure in loras.loras if erasure.moments is None]
    lines = [f"without moments, which are not at hand: {', '.join(without)}"] if without else []
    if loras.recipe is not None and loras.recipe.prior_source is not None and loras.recipe.prior is None:
        lines.append(f"without the prior ({loras.recipe.prior_source}), which is not at hand")
    return lines
