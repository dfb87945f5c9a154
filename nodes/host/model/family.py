"""Which Stable Diffusion a MODEL is, as LoRA files and checkpoints name it."""

from dataclasses import replace

import comfy.model_base

from ....mace.formats.lora_layouts import SD1, SD2, SD2_V, SDXL, Base
from .sampling import prediction

LEAST_SIDE = 64

_V = comfy.model_base.ModelType.V_PREDICTION
_BY_WIDTH = {(768, False): SD1, (1024, False): SD2, (1024, True): SD2_V}


def res_blocks(model) -> tuple[int, ...]:
    """num_res_blocks of a MODEL's UNet, one number a level ((2, 2, 2, 2) in SD1.x).

    Raises ValueError for a model that is no such UNet.
    """
    config = model.model.model_config.unet_config
    blocks = config.get("num_res_blocks")
    if blocks is None:
        raise ValueError(
            f"{type(model.model).__name__} is no Stable Diffusion UNet, and erasure LoRAs are of those (SD1.x, SD2.x, "
            "SDXL and their fine-tunes). Load LoRA puts a LoRA of another family on its model"
        )
    if isinstance(blocks, int):
        return (blocks,) * len(config["channel_mult"])
    return tuple(int(count) for count in blocks)


def _has_res_blocks(model) -> bool:
    return "num_res_blocks" in model.model.model_config.unet_config


def native_side(model) -> int:
    """The side in pixels of what a MODEL was trained on: 1024 for SDXL's kin and transformers, 768 for SD2.x with v,
    else 512."""
    if isinstance(model.model, comfy.model_base.SDXL | comfy.model_base.SDXLRefiner) or not _has_res_blocks(model):
        return 1024
    wide = model.model.model_config.unet_config.get("context_dim") == 1024
    return 768 if wide and model.model.model_type == _V else 512


def usual_guidance(model) -> float:
    """The classifier-free guidance (cfg) a MODEL is drawn with: none where it reads a guidance of its own (FLUX.1 dev),
    4 for other transformers, 7 for UNets."""
    if _has_res_blocks(model):
        return 7.0
    return 1.0 if model.model.model_config.unet_config.get("guidance_embed") else 4.0


def sized(model, width: int, height: int) -> tuple[int, int]:
    """(width, height) in pixels, 0 being what the model was made for. Raises ValueError for what is too small."""
    found = tuple(side or native_side(model) for side in (width, height))
    if min(found) < LEAST_SIDE:
        raise ValueError(
            f"pictures of {found[0]}x{found[1]} are too small: width and height are 0 or from {LEAST_SIDE}"
        )
    return found


def family(model) -> Base | None:
    """The family of a MODEL, by its class, the width of its text embeddings and what it predicts; None if unknown."""
    if not _has_res_blocks(model):
        return None
    predicted = prediction(model)
    if isinstance(model.model, comfy.model_base.SDXL):
        base = SDXL
    else:
        base = _BY_WIDTH.get((model.model.model_config.unet_config.get("context_dim"), predicted == "v"))
    return base if base is None or base.prediction == predicted else replace(base, prediction=predicted)
