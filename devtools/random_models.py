"""Whole checkpoints (UNet, text encoders, VAE) with random weights, in the layouts of the host's own classes.

For what the demo model cannot show: other families, true sizes, other predictions. Keys and shapes come from the
host's classes on the meta device and its own conversions for saving; a file has one number format throughout and is
written tensor by tensor, so that making SDXL takes no memory worth speaking of. The host must have been imported
(see devtools.inprocess) before anything here is called.

small: the smallest UNets that the host's detection accepts and that still have several levels; text encoders of true
width with three layers, which the host builds only if told so (`load` does); TAESD as the VAE. Where `plain`, the text
encoders are as large as any, so that the host's own loader takes the file; the layers behind the third change nothing.
"""

import hashlib
import json
import math
import os
import re
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

# What every UNet of the family has; the rest the host's class of the family fixes, or the kind below.
COMMON = {
    "use_checkpoint": False,
    "image_size": 32,
    "out_channels": 4,
    "use_spatial_transformer": True,
    "legacy": False,
    "use_temporal_resblock": False,
}


def levels(blocks: list[int], widths: list[int], down: list[int], up: list[int], middle: int) -> dict:
    """A UNet's shape as the host's configurations have it.

    blocks, widths: residual blocks and channels (times 320) of each level.  down, up, middle: transformers in every
    input block, every output block (the shallowest first) and in the middle.
    """
    return {
        "num_res_blocks": blocks,
        "channel_mult": widths,
        "transformer_depth": down,
        "transformer_depth_output": up,
        "transformer_depth_middle": middle,
    }


# As in the host's unet_config_from_diffusers_unet.
SD_FULL = levels([2] * 4, [1, 2, 4, 4], [1] * 6 + [0] * 2, [1] * 9 + [0] * 3, 1)
SDXL_FULL = levels([2] * 3, [1, 2, 4], [0, 0, 2, 2, 10, 10], [0, 0, 0, 2, 2, 2, 10, 10, 10], 10)
SD_SMALL = levels([1, 1], [1, 1], [1, 1], [1, 1, 1, 1], 1)
# The host tells v-prediction by a transformer in output block 11, so there must be twelve of them.
SD2_SMALL = levels([2] * 4, [1] * 4, [1, 0, 0, 1, 0, 0, 0, 0], [1, 0, 0, 0, 1] + [0] * 7, 1)
# The refiner reads CLIP-G alone, at a width of its own.
REFINER_DEPTHS = [0, 0, 4, 4, 4, 4, 0, 0], [0] * 3 + [4] * 6 + [0] * 3, 4
REFINER_FULL = levels([2] * 4, [1, 2, 4, 4], *REFINER_DEPTHS)
REFINER_SMALL = levels([2] * 4, [1] * 4, *REFINER_DEPTHS)
# KOALA's depths: the least that counts as SDXL.
SDXL_SMALL = levels([1] * 3, [1] * 3, [0, 2, 5], [0, 0, 1, 1, 1, 1], 1)
# SDXL's smaller kin: no transformer in the middle (-1), or no middle at all (-2).
SSD1B_DEPTHS = [0, 0, 2, 2, 4, 4], [0, 0, 0, 1, 1, 2, 10, 4, 4], -1
VEGA_DEPTHS = [0, 0, 1, 1, 2, 2], [0, 0, 0, 1, 1, 1, 2, 2, 2], -1
KOALA_DEPTHS = [0, 2, 5], [0, 0, 2, 2, 5, 5], -2


@dataclass(frozen=True)
class Kind:
    """family: the host's class (comfy.supported_models) whose fixed settings the UNet has.  full, small: see `levels`.
    model_type: the name of the host's ModelType that the file is detected as.  in_channels: of the UNet.  extra: keys
    of the file that the host tells the prediction by, with their values.  v_bias: the deviation of norm1's biases, by
    which the host tells v-prediction in SD2 (above 0.09)."""

    family: str
    full: dict
    small: dict
    model_type: str = "EPS"
    in_channels: int = 4
    extra: tuple[tuple[str, tuple[float, ...]], ...] = ()
    v_bias: float = 0.0


_SDXL = ("SDXL", SDXL_FULL, SDXL_SMALL)
# Playground 2.5's two, whose values the host does not read; the latents' scale is built into it.
_PLAYGROUND = (("edm_mean", (0.0,) * 4), ("edm_std", (1.0,) * 4))
KINDS = {
    "sd15": Kind("SD15", SD_FULL, SD_SMALL),
    "sd15_inpaint": Kind("SD15", SD_FULL, SD_SMALL, in_channels=9),
    "sd21": Kind("SD20", SD_FULL, SD2_SMALL, "V_PREDICTION", v_bias=0.2),
    "sdxl": Kind(*_SDXL),
    "ssd1b": Kind("SSD1B", levels([2] * 3, [1, 2, 4], *SSD1B_DEPTHS), levels([2] * 3, [1] * 3, *SSD1B_DEPTHS)),
    "vega": Kind("Segmind_Vega", levels([2] * 3, [1, 2, 4], *VEGA_DEPTHS), levels([2] * 3, [1] * 3, *VEGA_DEPTHS)),
    "koala": Kind("KOALA_700M", levels([1] * 3, [1, 2, 4], *KOALA_DEPTHS), levels([1] * 3, [1] * 3, *KOALA_DEPTHS)),
    "sdxl_refiner": Kind("SDXLRefiner", REFINER_FULL, REFINER_SMALL),
    "sdxl_v": Kind(*_SDXL, "V_PREDICTION", extra=(("v_pred", ()),)),
    "sdxl_edm": Kind(*_SDXL, "EDM", extra=_PLAYGROUND),
    "sdxl_edm_v": Kind(
        *_SDXL, "V_PREDICTION_EDM", extra=(("edm_vpred.sigma_max", (120.0,)), ("edm_vpred.sigma_min", (0.002,)))
    ),
}
# Three layers, since SD2 and SDXL read the last but one and the host asks for more than two. The widths that other
# parts see stay; the hidden layers are a sixth of the usual width or less.
SMALL_TEXT = {
    f"clip_{name}_model_config": {"num_hidden_layers": 3, "intermediate_size": 512} for name in ("l", "g", "h")
}
KL_VAE = {
    "double_z": True,
    "z_channels": 4,
    "resolution": 256,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 128,
    "ch_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_resolutions": [],
    "dropout": 0.0,
}
NAMES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.int64: "I64"}
# What adds to a residual stream: scaled down, or it would grow with the depth until attention looks at one place only.
RESIDUAL = re.compile(r"(out_proj|c_proj|mlp\.fc2|to_out\.0|ff\.net\.2|proj_out|out_layers\.3|conv2)\.weight$")
RESIDUAL_GAIN = 0.5
EMBEDDING, EMBEDDING_STD = re.compile(r"(token|position|positional)_embedding(\.weight)?$"), 0.02
# Of CLIP-L and of CLIP-G, as their files name them.
TEXT_LAYER = re.compile(r"(?:encoder\.layers|transformer\.resblocks)\.(\d+)\.")
LIVE_LAYERS = 3
V_BIAS = re.compile(r"transformer_blocks\.\d+\.norm1\.bias$")


def text_options(small: bool) -> dict:
    """te_model_options of the host's loader; they name the encoders of all kinds, and it reads those it builds."""
    return SMALL_TEXT if small else {}


def unet_config(kind: str, small: bool) -> dict:
    """The UNet's configuration, as the host's detection gives it back."""
    import comfy.supported_models

    chosen = KINDS[kind]
    fixed = getattr(comfy.supported_models, chosen.family).unet_config
    shape = chosen.small if small else chosen.full
    config = {**COMMON, **fixed, **shape, "in_channels": chosen.in_channels}
    if config["adm_in_channels"]:
        config["num_classes"] = "sequential"
    return config


def layout(kind: str, small: bool, plain: bool = False) -> dict[str, Tensor]:
    """The file's tensors by key: on the meta device where they are to be filled, else with their values."""
    import comfy.memory_management
    import comfy.model_detection
    import comfy.ops
    from comfy.ldm.models.autoencoder import AutoencoderKL
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
    from comfy.taesd.taesd import TAESD

    config = comfy.model_detection.model_config_from_unet_config(unet_config(kind, small))
    # With the host's dynamic memory layers get their weights only from a file.
    dynamic, comfy.memory_management.aimdo_enabled = comfy.memory_management.aimdo_enabled, False
    try:
        unet = UNetModel(**config.unet_config, device="meta", operations=comfy.ops.manual_cast)
        options = text_options(small and not plain)
        text = config.clip_target().clip(device="meta", dtype=torch.float32, model_options=options)
        with torch.device("meta"):
            vae = TAESD() if small else AutoencoderKL(ddconfig=KL_VAE, embed_dim=4)
    finally:
        comfy.memory_management.aimdo_enabled = dynamic
    # The host's conversions also leave out what true files lack (CLIP-L's text projection).
    found = config.process_unet_state_dict_for_saving(unet.state_dict())
    found |= config.process_clip_state_dict_for_saving(text.state_dict())
    found |= config.process_vae_state_dict_for_saving(vae.state_dict())
    for name, values in KINDS[kind].extra:
        found[name] = torch.tensor(values[0] if len(values) == 1 else values)
    return found


def filled(key: str, shape: torch.Size, seed: int, device: torch.device | str = "cpu", v_bias: float = 0.0) -> Tensor:
    """The values of one tensor, float32: always the same for a key, a seed and a kind of device.

    Matrices and convolutions keep the variance of what comes in, queries and keys too: scores are about N(0, 1), so
    that attention is neither even nor at one place. Norms are ones, biases zeros.
    """
    if len(shape) < 2 and not (EMBEDDING.search(key) or v_bias and V_BIAS.search(key)):
        return torch.full(shape, 0.0 if key.endswith(("bias", "vae_shift")) else 1.0, device=device)
    digest = hashlib.sha256(f"{seed} {key}".encode()).digest()
    generator = torch.Generator(device).manual_seed(int.from_bytes(digest[:7], "little"))
    if len(shape) < 2:
        std = v_bias
    elif EMBEDDING.search(key):
        std = EMBEDDING_STD
    else:
        std = (RESIDUAL_GAIN if RESIDUAL.search(key) else 1.0) / math.sqrt(math.prod(shape[1:]))
    return torch.randn(shape, generator=generator, device=device).mul_(std)


def make_checkpoint(
    path: Path,
    kind: str,
    small: bool,
    dtype: torch.dtype = torch.float16,
    seed: int = 0,
    device: torch.device | str = "cpu",
    plain: bool = False,
) -> Path:
    """Write a checkpoint with random weights to `path`, which appears complete or not at all; returns the path.

    kind: one of KINDS.  dtype: of all weights: fp16, bf16 or fp32.  device: where values are drawn, one tensor at a
    time on a GPU and as many as there are cores on the CPU; other devices draw other values.  plain: whether the host's
    own loader is to take a small one.
    """
    found, v_bias = layout(kind, small, plain), KINDS[kind].v_bias
    # Larger elements first keep every tensor aligned; within that, by name.
    dtypes = {key: dtype if tensor.is_meta else tensor.dtype for key, tensor in found.items()}
    keys = sorted(found, key=lambda key: (-dtypes[key].itemsize, key))
    header, offset = {"__metadata__": {"format": "pt", "modelspec.title": f"random {kind}, seed {seed}"}}, 0
    for key in keys:
        size = found[key].numel() * dtypes[key].itemsize
        header[key] = {"dtype": NAMES[dtypes[key]], "shape": list(found[key].shape)}
        header[key]["data_offsets"] = [offset, offset + size]
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)

    def make(key: str) -> Tensor:
        tensor = found[key]
        layer = TEXT_LAYER.search(key)
        if plain and layer and int(layer[1]) >= LIVE_LAYERS and tensor.dim() > 1:
            return torch.zeros(tensor.shape, dtype=dtypes[key])
        values = filled(key, tensor.shape, seed, device, v_bias) if tensor.is_meta else tensor
        return values.detach().to(dtypes[key]).cpu().contiguous()

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for tensor in _in_turn(make, keys, 1 if torch.device(device).type != "cpu" else os.cpu_count() or 1):
                if tensor.numel():
                    file.write(memoryview(tensor.reshape(-1).view(torch.uint8).numpy()))
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path


def _in_turn(make, keys: list[str], at_once: int) -> Iterator[Tensor]:
    """make(key) of every key in order, a few at a time, so that no more lie in memory."""
    with ThreadPoolExecutor(at_once) as pool:
        for start in range(0, len(keys), at_once):
            yield from pool.map(make, keys[start : start + at_once])


def load(path: Path, small: bool):
    """(MODEL, CLIP, VAE) of such a file by the host's loader, as CheckpointLoaderSimple gives them."""
    import comfy.sd

    with torch.inference_mode():
        return comfy.sd.load_checkpoint_guess_config(
            str(path), output_vae=True, output_clip=True, te_model_options=text_options(small)
        )[:3]
