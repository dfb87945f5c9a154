"""Save Erased Model: an ordinary checkpoint, or a diffusion model alone, with a record of what was erased."""

import datetime
import json
import os
from collections.abc import Mapping

import comfy.model_base
import torch
from comfy import model_management
from comfy.cli_args import args
from comfy_api.latest import io

from ...mace import __version__
from ..host import files
from ..host.model.family import family
from ..host.model.fp8 import FP8
from ..host.model.sampling import described, samples_as_saved, sampling_keys
from ..host.model.unet import ATTACHMENT, is_quantised, key_patches, weights_sha256, with_patches
from ..host.model.unsaved import unsaved
from ..host.prefixes import expanded, prefix_error
from ..schema import FILES

AS_LOADED = "as loaded"
UNET_PREFIX = "model.diffusion_model."
DTYPES = {AS_LOADED: None, "fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}

# modelspec.architecture and the native resolution of a family that has no LoRAs of ours.
REFINER = ("stable-diffusion-xl-v1-refiner", "1024x1024")


def modelspec(model, title: str, predict_key: str | None) -> dict[str, str]:
    """The modelspec entries of the file's metadata."""
    entries = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.implementation": "sgm",
        "modelspec.title": title,
        "modelspec.date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%S"),
        "modelspec.description": "Saved by MACE for ComfyUI; mace.provenance says what was erased.",
    }
    if predict_key:
        entries["modelspec.predict_key"] = predict_key
    base = family(model)
    if isinstance(model.model, comfy.model_base.SDXLRefiner):
        entries["modelspec.architecture"], entries["modelspec.resolution"] = REFINER
    elif base is not None:
        entries["modelspec.architecture"], entries["modelspec.resolution"] = base.architecture, base.resolution
    return entries


def provenance(model, clip) -> dict:
    """What was erased, how, with which version and from which base.

    base_model_sha256 covers the diffusion model's weights before any patch; patched_weights counts those that
    were changed, by LoRAs before the erasure too.
    """
    return {
        "pack": "mace-comfyui",
        "version": __version__,
        "base_model_sha256": weights_sha256(model),
        "patched_weights": len(model.patches),
        "clip_layer": None if clip is None else clip.layer_idx,
        "stages": list(model.get_attachment(ATTACHMENT) or ()),
    }


def upcast_fp8(model) -> dict[str, torch.Tensor]:
    """The patched fp8 weights as float32 under their names in a checkpoint.

    The host rounds a patched weight back to fp8, which is too coarse to hold an edit; a file in another
    format need not lose it. Raises ValueError for quantised weights, whose parts cannot be cast one by one.
    """
    patches = key_patches(model)
    quantised = next((key for key in patches if is_quantised(patches[key][0][0])), None)
    if quantised is not None:
        raise ValueError(f"{quantised} is quantised: choose dtype '{AS_LOADED}', or load the fp16, bf16 or fp32 model")
    return {
        f"model.{key}": with_patches(patches[key], key, model.load_device)
        for key in model.patches
        if key in patches and patches[key][0][0].dtype in FP8
    }


def checkpoint_tensors(
    model, clip, vae, dtype: torch.dtype | None, extra: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The checkpoint's tensors under standard keys, on the CPU, patches baked in, in `dtype` (None: as loaded).

    Without clip and vae those of the diffusion model alone, under the names that its own files have. Raises ValueError
    for a weight that is not finite in that dtype.
    """
    model_management.load_models_gpu([model] if clip is None else [model, clip.load_model()])
    # The move to the CPU is what bakes an offloaded weight's patches (the host hands out parameters that do so in
    # their own `to`): it comes before anything else that reads the tensor, conversions of the text encoder too.
    others = ()
    if clip is not None:
        others = {name: tensor.to("cpu") for name, tensor in clip.state_dict_for_saving().items()}, vae.get_sd()
    state = model.state_dict_for_saving(*others)
    # The host goes by what the model was loaded as.
    state.pop("v_pred", None)
    state.update(extra)
    packed = next((name for name, tensor in state.items() if getattr(tensor, "is_meta", False)), None)
    if packed is not None:
        raise ValueError(
            f"{packed} is in a format of another pack that ComfyUI cannot save (GGUF is one): load the fp16, bf16 or "
            "fp32 model"
        )
    if dtype is not None:
        state.update(upcast_fp8(model))
    tensors: dict[str, torch.Tensor] = {}
    storages: set[int] = set()
    for name in list(state):
        model_management.throw_exception_if_processing_interrupted()
        tensor = state.pop(name).to("cpu").detach()
        if clip is None:
            name = name.removeprefix(UNET_PREFIX)
        if dtype is not None and tensor.is_floating_point() and name not in extra:
            tensor = tensor.to(dtype)
        if tensor.is_floating_point() and not torch.isfinite(tensor.float()).all():
            raise ValueError(
                f"{name} holds values that are not finite in {tensor.dtype}: the model is damaged, or it needs "
                "bf16 or fp32"
            )
        storage = tensor.untyped_storage()
        # Views and tied weights are saved as tensors of their own, which the file format asks for.
        if storage.data_ptr() in storages or storage.nbytes() != tensor.nbytes or not tensor.is_contiguous():
            tensor = tensor.clone(memory_format=torch.contiguous_format)
        storages.add(tensor.untyped_storage().data_ptr())
        tensors[name] = tensor
    return tensors


class SaveErasedModel(io.ComfyNode):
    """Saves MODEL, CLIP and VAE as one checkpoint, or the MODEL alone."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MACE_SaveErasedModel",
            display_name="Save Erased Model (MACE)",
            category=FILES,
            description="Saves the erased model as an ordinary checkpoint that every workflow loads, with a record of "
            "what was erased in its metadata. Without CLIP and VAE: the diffusion model alone.",
            search_aliases=["mace", "save checkpoint", "export", "safetensors"],
            inputs=[
                io.Model.Input("model", tooltip="The erased model; its patches are baked into the file."),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="The text encoder to save with it. Neither CLIP nor VAE: a file for Load Diffusion Model.",
                ),
                io.Vae.Input("vae", optional=True, tooltip="The VAE to save with it."),
                io.String.Input(
                    "filename_prefix",
                    default="checkpoints/erased",
                    tooltip="Path inside the output folder; a counter is added and nothing is overwritten. Files in "
                    "output/checkpoints appear in Load Checkpoint at once.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=list(DTYPES),
                    default=AS_LOADED,
                    tooltip="Number format of the file: fp16 and bf16 halve it; as loaded keeps the host's.",
                ),
            ],
            outputs=[],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, filename_prefix=None):
        return filename_prefix is None or prefix_error(filename_prefix) or True

    @classmethod
    def execute(cls, model, filename_prefix, dtype, clip=None, vae=None) -> io.NodeOutput:
        if (clip is None) != (vae is None):
            missing, other = ("clip", "vae") if clip is None else ("vae", "clip")
            raise ValueError(
                f"the {missing} input is empty: connect a loader of its own, or leave {other} empty too and save the "
                "diffusion model alone"
            )
        predict_key, extra = sampling_keys(model)
        metadata = modelspec(model, os.path.basename(expanded(filename_prefix)), predict_key)
        lost = unsaved(model)
        if not args.disable_metadata:
            metadata["prompt"] = json.dumps(cls.hidden.prompt or {})
            for name, value in (cls.hidden.extra_pnginfo or {}).items():
                metadata[name] = json.dumps(value)
        tensors = checkpoint_tensors(model, clip, vae, DTYPES[dtype], extra)
        if not samples_as_saved(model, tensors, "" if clip is None else UNET_PREFIX):
            lost.insert(0, f"model_sampling ({described(model.get_model_object('model_sampling'))})")
        metadata["mace.provenance"] = json.dumps({**provenance(model, clip), "not_saved": lost}, ensure_ascii=False)
        path = files.save_safetensors(filename_prefix, tensors, metadata)
        text = str(path)
        if dtype == AS_LOADED and model.model_dtype() in FP8 and model.patches:
            text += (
                "\nThe file is in fp8; edited weights that are wider are rounded to it by a ComfyUI without dynamic "
            )
            text += "memory when it loads them: fp16 or bf16 keep the changes whole everywhere."
        stages = model.get_attachment(ATTACHMENT) or ()
        if clip is None and "diffusion_models" not in path.parts:
            text += (
                "\nLoad Diffusion Model lists output/diffusion_models: name it diffusion_models/... to find it there."
            )
        if lost:
            text += (
                f"\nA checkpoint cannot hold what other nodes set on the model: {'; '.join(lost)}. Set it again where "
                "the file is used."
            )
        own = None if clip is None else clip.layer_idx
        layers = {layer for layer in (own, *(stage["clip_layer"] for stage in stages)) if layer is not None}
        if layers:
            names = ", ".join(map(str, sorted(layers)))
            text += f"\nA checkpoint does not carry clip skip: set CLIP layer {names} again where the file is used."
        return io.NodeOutput(ui={"checkpoints": [files.saved_result(path)], "text": (text,)})
