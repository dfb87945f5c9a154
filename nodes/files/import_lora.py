"""Import LoRA as Erasure LoRA: one concept's LoRA of another program."""

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from comfy_api.latest import io, ui

from ... import install
from ...mace.concepts.concept import Concept
from ...mace.formats.lora_layouts import PEFT
from ...mace.formats.lora_reading import DIFFUSERS, READ, idle, layout_of, read
from ...mace.formats.lora_set import ErasureLora, LoraSet, LoraSetError, join
from ...mace.formats.lora_set_file import FORMAT, REFINED_ON_KEY, concept_of
from ...mace.formats.records import RecordError, read_adapter
from ..host import files
from ..host.folders import file_names, path_of, path_or_raise
from ..host.lora_files import CONFIG
from ..host.model.family import family, res_blocks
from ..host.model.unet import cross_attention_keys, matrix_shape
from ..schema import FILES, ConceptsType, LorasType

_NAMES = dict(zip(READ, ("ComfyUI", "kohya", "PEFT", "Diffusers"), strict=True))
# Where Diffusers writes the configuration of its adapters into a file.
_IN_METADATA = "lora_adapter_metadata"


def config_path(path: str) -> str:
    """Where PEFT's configuration of an adapter file lies."""
    return os.path.join(os.path.dirname(path), CONFIG)


def read_config(path: str) -> Mapping | None:
    """PEFT's configuration beside an adapter file, None where there is none. Raises ValueError for a broken one."""
    try:
        text = install.read_text(Path(config_path(path)))
        return read_adapter(text, "its JSON")
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise LoraSetError(f"{config_path(path)} is damaged: {error}") from None


def config_in(metadata: Mapping[str, str]) -> Mapping | None:
    """The UNet's configuration in the metadata of a file of Diffusers, None where there is none. Raises ValueError."""
    if _IN_METADATA not in metadata:
        return None
    try:
        return read_adapter(metadata[_IN_METADATA], "its JSON", "unet.") or None
    except RecordError as error:
        raise LoraSetError(f"the file's {_IN_METADATA} is damaged: {error}") from None


def the_concept(concepts: tuple[Concept, ...] | None, metadata: Mapping[str, str], name: str) -> Concept:
    """The one concept a LoRA erases: the connected one, else the one that the file names."""
    if concepts is None:
        found = concept_of(metadata)
        if found is None:
            raise LoraSetError(f"{name} does not say what it erases: connect Concepts with its concept")
        return found
    if len(concepts) != 1:
        raise LoraSetError(f"a LoRA erases one concept, and {len(concepts)} are connected: give each its own import")
    return concepts[0]


def check_shapes(model, lora: Mapping, name: str) -> None:
    """Raise LoraSetError unless every pair (B, A) of a LoRA fits the MODEL's projection of its key."""
    known = {key: matrix_shape(model, key) for key in cross_attention_keys(model)}
    for key, (up, down) in lora.items():
        shape = (up.shape[0], down.shape[1])
        if key not in known:
            raise LoraSetError(f"{name} is for another model: this one has no {key}")
        if known[key] != shape:
            raise LoraSetError(f"{name} is for another model: {key} is {known[key]} here, the LoRA's is {shape}")


class ImportLora(io.ComfyNode):
    """Reads a LoRA file of ComfyUI, kohya, PEFT or Diffusers as the erasure LoRA of one concept."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MACE_ImportLora",
            display_name="Import LoRA as Erasure LoRA (MACE)",
            category=FILES,
            description="Reads a LoRA of another program (in the layout of ComfyUI, kohya, PEFT or Diffusers) as the "
            "erasure LoRA of one concept, to be fused with others. It must change only to_k and to_v of "
            "cross-attention.",
            search_aliases=["mace", "import lora", "kohya", "peft"],
            inputs=[
                io.Model.Input("model", tooltip="The model the LoRA is for: its layers are checked against it."),
                io.Combo.Input(
                    "lora_name",
                    options=file_names("loras"),
                    tooltip="A safetensors file of models/loras or output/loras. A PEFT folder put there is listed by "
                    "its adapter_model.safetensors; its adapter_config.json is read too.",
                ),
                ConceptsType.Input(
                    "concepts",
                    optional=True,
                    tooltip="The one concept that the LoRA erases. Files that Save Erasure LoRAs wrote know theirs "
                    "and need none.",
                ),
                LorasType.Input("more", optional=True, tooltip="LoRAs of another node; they come before this one."),
            ],
            outputs=[LorasType.Output("loras", tooltip="The LoRA as a set of one, after those of `more`.")],
            has_intermediate_output=True,
        )

    @classmethod
    def fingerprint_inputs(cls, lora_name="", **_):
        path = path_of("loras", lora_name)
        return None if path is None else (files.path_stamp(path), files.path_stamp(config_path(path)))

    @classmethod
    def execute(cls, model, lora_name, concepts=None, more=None) -> io.NodeOutput:
        path = path_or_raise("loras", lora_name)
        if not lora_name.lower().endswith((".safetensors", ".sft")):
            raise LoraSetError(
                f"{lora_name} is not a safetensors file. Files of other kinds can run programs when they are read: "
                "convert it to safetensors first"
            )
        blocks = res_blocks(model)
        tensors, metadata = files.read_safetensors(path, lora_name)
        if metadata.get("format") == FORMAT:
            raise LoraSetError(
                f"{lora_name} is a set of erasure LoRAs: put it in {files.LORAS} and use Load Erasure LoRAs"
            )
        try:
            layout = layout_of(tensors)
            config = read_config(path) if layout == PEFT else config_in(metadata) if layout == DIFFUSERS else None
            found = read(tensors, blocks, config)
        except LoraSetError:
            raise
        except ValueError as error:
            raise LoraSetError(
                f"{lora_name}: {error}. An erasure LoRA is of this model and changes only to_k and to_v of its "
                "cross-attention"
            ) from None
        check_shapes(model, found, lora_name)
        concept = the_concept(concepts, metadata, lora_name)
        lora = {key: (up.float().contiguous(), down.float().contiguous()) for key, (up, down) in found.items()}
        refined_on = metadata.get(REFINED_ON_KEY, "")
        settings = {"imported": lora_name, "layout": _NAMES[layout]}
        erasure = ErasureLora(concept, lora, torch.empty(0), settings, refined_on=refined_on)
        result = LoraSet((erasure,), None, blocks, family(model))

        ranks = sorted({down.shape[0] for _, down in lora.values()})
        lines = [f"{concept.target}: {_NAMES[layout]} layout, {len(lora)} matrices, rank {', '.join(map(str, ranks))}"]
        nothing = idle(lora)
        if nothing:
            where = "it does nothing" if nothing == len(lora) else f"{nothing} of {len(lora)} matrices do nothing"
            lines.append(f"{where}: alpha is 0 there, or one of the two factors is")
        own = concept_of(metadata)
        if own is not None and own.target != concept.target:
            lines.append(f"the file says that it erases {own.target!r}")
        if layout == PEFT and config is None:
            lines.append(f"no {CONFIG} beside the file: its scale is taken as 1")
        if more is not None:
            result = join(more, result)
            lines.append(f"with those before: {len(result.loras)} concepts")
        return io.NodeOutput(result, ui=ui.PreviewText("\n".join(lines)))
