"""Load Erasure LoRAs: a saved set."""

from comfy_api.latest import io, ui

from ...mace.formats.file_tensors import FileTensors
from ...mace.formats.lora_set import LoraSet, join
from ...mace.formats.lora_set_file import changed_prompts, set_from_file
from ..host import files
from ..host.folders import file_names, path_of, path_or_raise
from ..schema import FILES, LorasType


def report(loras: LoraSet) -> list[str]:
    """What a set holds, in lines for the artist."""
    ranks = sorted({down.shape[0] for erasure in loras.loras for _, down in erasure.lora.values()})
    have = sum(erasure.moments is not None for erasure in loras.loras)
    lines = [
        f"{len(loras.loras)} concepts: {', '.join(concept.target for concept in loras.concepts)}",
        f"rank {', '.join(map(str, ranks))}; moments of {have} of {len(loras.loras)}",
    ]
    recipe = loras.recipe
    if recipe is None:
        lines.append("imported LoRAs: no refinement is recorded")
    elif recipe.prior_source is not None:
        lines.append(f"prior: {recipe.prior_source} ({'in the file' if recipe.prior else 'not in the file'})")
    return lines


class LoadLoras(io.ComfyNode):
    """Reads a set saved by Save Erasure LoRAs."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MACE_LoadLoras",
            display_name="Load Erasure LoRAs (MACE)",
            category=FILES,
            description="Loads a set of erasure LoRAs that Save Erasure LoRAs wrote, and chains it to another.",
            search_aliases=["mace", "load lora", "erasure lora"],
            inputs=[
                io.Combo.Input(
                    "loras_name",
                    options=file_names(files.LORAS),
                    tooltip=f"A set in models/{files.LORAS} or output/{files.LORAS}. LoRAs of other programs are read "
                    "by Import LoRA as Erasure LoRA.",
                ),
                LorasType.Input("more", optional=True, tooltip="LoRAs of another node; they come before this file's."),
            ],
            outputs=[LorasType.Output("loras", tooltip="The erasure LoRAs, with what fusing needs to know of them.")],
            has_intermediate_output=True,
        )

    @classmethod
    def fingerprint_inputs(cls, loras_name="", **_):
        return files.path_stamp(path_of(files.LORAS, loras_name))

    @classmethod
    def execute(cls, loras_name, more=None) -> io.NodeOutput:
        tensors = FileTensors(path_or_raise(files.LORAS, loras_name), loras_name)
        loaded = set_from_file(tensors, tensors.metadata, later=True)
        lines = report(loaded)
        changed = changed_prompts(tensors.metadata)
        if changed:
            lines.append(
                "this version reads concepts in other prompts than the file's were trained with; moments computed "
                f"anew will differ: {', '.join(changed)}"
            )
        loras = loaded if more is None else join(more, loaded)
        if more is not None:
            lines.append(f"with those before: {len(loras.loras)} concepts")
        return io.NodeOutput(loras, ui=ui.PreviewText("\n".join(lines)))
