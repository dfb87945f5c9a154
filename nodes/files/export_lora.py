"""Export Change as LoRA: the difference of two models' cross-attention as one LoRA."""

import json
import operator
from dataclasses import dataclass, field
from math import sqrt

import torch
from comfy import model_management
from comfy.utils import ProgressBar
from comfy_api.latest import io, ui

from ...mace.method.lora import Lora, approximate
from ..host.lora_files import FORMATS, search_note, write_lora
from ..host.model.family import family, res_blocks
from ..host.model.ports import known_ports
from ..host.model.unet import (
    ATTACHMENT,
    cross_attention_keys,
    effective_weight,
    is_unet,
    key_patches,
    pooled_key,
    weight_key,
    with_patches,
)
from ..host.prefixes import prefix_error
from ..schema import FILES

# Above what rounding to fp16 or bf16 does to a weight, below what fine-tuning does.
SAME = 0.005


@dataclass(frozen=True)
class Change:
    """A LoRA of the difference of two models, and what it misses: ||delta - B A|| / ||delta|| over all layers, and
    of the layer where it is largest."""

    lora: Lora = field(repr=False)
    residual: float
    worst: float
    worst_key: str


def change(base, edited, keys: list[str], rank: int, step) -> Change:
    """The LoRA of `edited` minus `base` (MODELs) over the projections `keys`; only those that differ are in it.

    step(1) after each projection. Raises ValueError when none differs.
    """
    before, after = (key_patches(model) for model in (base, edited))
    lora, missed, whole, worst = {}, 0.0, 0.0, (-1.0, "")
    for key in keys:
        model_management.throw_exception_if_processing_interrupted()
        old = effective_weight(before[key], key, base.load_device)
        delta = effective_weight(after[key], key, base.load_device) - old
        if delta.any():
            up, down, residual = approximate(delta, rank)
            lora[key] = (up.cpu(), down.cpu())
            square = float(delta.norm()) ** 2
            whole, missed = whole + square, missed + residual**2 * square
            worst = max(worst, (residual, key))
        step(1)
    if not lora:
        raise ValueError(
            "the two models read their prompts by the same weights: connect the model before the erasure as base and "
            "the refined or fused one as edited"
        )
    return Change(lora, sqrt(missed / whole), *worst)


def check_same(base, edited) -> list[str]:
    """The weights that read the prompt of two MODELs that are one model but for those.

    A UNet's cross-attention projections and what reads its pooled text; another family's text ports. Raises ValueError
    for models with other layers, for weights elsewhere that differ by more than rounding, and for a family whose ports
    are not known.
    """
    known = None if is_unet(base) else known_ports(base)
    if known:
        keys = [weight_key(name) for group in known for name in group]
    else:
        port = pooled_key(base)
        keys = cross_attention_keys(base) + ([port] if port else [])
    before, after = (key_patches(model) for model in (base, edited))
    if before.keys() != after.keys():
        raise ValueError("base and edited are different models: they have other layers")
    for key in before:
        model_management.throw_exception_if_processing_interrupted()
        if before[key][0][0].shape != after[key][0][0].shape:
            raise ValueError(f"base and edited are different models: {key} has another shape")
        if key not in keys and not _distance(before[key], after[key], key, base.load_device) <= SAME:
            raise ValueError(
                f"base and edited differ in {key} too, which does not read the prompt: they are different models, or "
                "one has a LoRA or merge that the other lacks"
            )
    return keys


def _distance(one: list, other: list, key: str, device: torch.device) -> float:
    """||a - b|| / ||a|| of two weights with their patches; see `key_patches`."""
    if len(one) == len(other) and one[0][0] is other[0][0] and all(map(operator.is_, one[1:], other[1:])):
        return 0.0
    a, b = (with_patches(patches, key, device) for patches in (one, other))
    return float((a - b).norm() / a.norm().clamp_min(1e-12))


class ExportLora(io.ComfyNode):
    """Saves the change from one model to another as a LoRA by truncated singular value decomposition."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MACE_ExportLora",
            display_name="Export Change as LoRA (MACE)",
            category=FILES,
            description="Saves what an erasure changed as one small LoRA for the base model: the best one of the rank "
            "chosen, with a report of what it misses.",
            search_aliases=["mace", "export lora", "extract lora", "svd", "difference"],
            inputs=[
                io.Model.Input("base", tooltip="The model before the erasure."),
                io.Model.Input("edited", tooltip="The refined or fused model, or a saved erased checkpoint."),
                io.Int.Input(
                    "rank",
                    default=16,
                    min=1,
                    max=1280,
                    tooltip="Rank of the LoRA in every layer: a higher one misses less and makes a larger file "
                    "(0.2 MB a rank for SD1.x).",
                ),
                io.Combo.Input(
                    "format",
                    options=list(FORMATS),
                    default=FORMATS[0],
                    tooltip="ComfyUI for Load LoRA, kohya for A1111 and Forge (Load LoRA reads it too), PEFT a folder "
                    "for diffusers and peft (SD1.x, SD2.x and SDXL only).",
                ),
                io.String.Input(
                    "filename_prefix",
                    default="loras/erased",
                    tooltip="Path inside the output folder; a counter is added and nothing is overwritten. Files in "
                    "output/loras appear in Load LoRA.",
                ),
            ],
            outputs=[],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, filename_prefix=None):
        return filename_prefix is None or prefix_error(filename_prefix) or True

    @classmethod
    def execute(cls, base, edited, rank, format, filename_prefix) -> io.NodeOutput:
        blocks = res_blocks(base) if is_unet(base) else None
        keys = check_same(base, edited)
        found = change(base, edited, keys, rank, ProgressBar(len(keys)).update)
        record = {"rank": rank, "residual": found.residual, "stages": list(edited.get_attachment(ATTACHMENT) or ())}
        description = (
            f"The change of an erasure by MACE as a LoRA of rank {rank}, for the base model at strength 1; it misses "
            f"{found.residual:.1%} of the change."
        )
        metadata = {"mace.change": json.dumps(record, ensure_ascii=False)}
        path = write_lora(format, filename_prefix, found.lora, blocks, family(base), description, metadata)
        lines = [
            str(path),
            f"{len(found.lora)} of {len(keys)} matrices differ; rank {rank} misses {found.residual:.2%} of the change",
            f"worst: {found.worst:.2%} in {found.worst_key}",
        ]
        if found.residual > 1e-5:
            lines.append("Raise the rank to miss less; where exactness matters, save a checkpoint instead.")
        return io.NodeOutput(ui=ui.PreviewText("\n".join([*lines, *search_note([path], format)])))
