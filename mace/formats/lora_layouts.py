"""One concept's Erasure LoRA in the layouts of other programs: ComfyUI, kohya (A1111, Forge) and PEFT.

A LoRA is a mapping of the host's key, such as
diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight, to (B [d_out, r], A [r, d]), and adds B A.
Layouts are dicts of tensors, with metadata or a config beside them; reading and writing files is the caller's.
Files scale B A by alpha / rank. Written alphas equal the rank (scale 1); read ones are multiplied into B.
The UNets are those of SD1.x, SD2.x and SDXL; num_res_blocks is theirs, one number a level ([2, 2, 2, 2] in SD1.x).
None in its place is another family, whose text ports may be any layers: ComfyUI's and kohya's files take the host's
own names for them, PEFT's would need diffusers' names of every family.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, sqrt

import torch
from torch import Tensor

from ..method.lora import Lora

COMFYUI, KOHYA, PEFT = LAYOUTS = ("comfyui", "kohya", "peft")
_PREFIX = {"diffusion_model.": COMFYUI, "lora_": KOHYA, "base_model.model.": PEFT}
_PROJECTION = r"transformer_blocks{0}\d+{0}attn2{0}to_[kv]"
_KEY = re.compile(rf"diffusion_model\.(.+?)\.({_PROJECTION.format('[.]')})\.weight")
_COMFYUI = re.compile(r"(diffusion_model\..+)\.(lora_up\.weight|lora_down\.weight|alpha)")
_KOHYA = re.compile(rf"lora_unet_(.+?)_({_PROJECTION.format('_')})\.(lora_up\.weight|lora_down\.weight|alpha)")
_PEFT = re.compile(rf"base_model\.model\.(.+?)\.({_PROJECTION.format('[.]')})\.(lora_A\.weight|lora_B\.weight)")
_PART = {"lora_A.weight": "down", "lora_B.weight": "up", "lora_up.weight": "up", "lora_down.weight": "down"}
# Narrower floats, and others of eight bits, torch cannot compute with.
_REAL = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)


@dataclass(frozen=True)
class Base:
    """The model a LoRA is for, as metadata names it.  v2: SD2.x."""

    architecture: str
    version: str
    resolution: str
    v2: bool = False
    prediction: str = "epsilon"


SD1 = Base("stable-diffusion-v1", "sd_v1", "512x512")
SD2 = Base("stable-diffusion-v2-512", "sd_v2", "512x512", v2=True)
SD2_V = Base("stable-diffusion-v2-768-v", "sd_v2_v", "768x768", v2=True, prediction="v")
SDXL = Base("stable-diffusion-xl-v1-base", "sdxl_base_v1-0", "1024x1024")


def diffusers_blocks(num_res_blocks: Sequence[int]) -> dict[str, str]:
    """diffusers' names of the blocks that may hold attention, by the host's.

    Such as down_blocks.0.attentions.0 by input_blocks.1.1: input_blocks.0 is the first convolution; every level then
    has its residual blocks and, but for the last, one that halves the picture. Going up, levels run backwards with
    one block more each, and what doubles the picture is part of a level's last block.
    """
    names = {}
    at = 1
    for level, count in enumerate(num_res_blocks):
        names |= {f"input_blocks.{at + i}.1": f"down_blocks.{level}.attentions.{i}" for i in range(count)}
        at += count + 1
    names["middle_block.1"] = "mid_block.attentions.0"
    at = 0
    for level, count in enumerate(reversed(num_res_blocks)):
        names |= {f"output_blocks.{at + i}.1": f"up_blocks.{level}.attentions.{i}" for i in range(count + 1)}
        at += count + 1
    return names


# What reads the pooled text of SDXL, in diffusers. kohya's files have the host's own name for it, which A1111 and Forge
# know too.
_POOLED = {"diffusion_model.label_emb.0.0.weight": "add_embedding.linear_1"}


def diffusers_module(key: str, num_res_blocks: Sequence[int]) -> str:
    """diffusers' name of the module of a host's key: down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.

    Raises ValueError for a key that is no cross-attention projection of such a UNet.
    """
    if key in _POOLED:
        return _POOLED[key]
    match = _KEY.fullmatch(key)
    block = diffusers_blocks(num_res_blocks).get(match[1]) if match else None
    if block is None:
        raise ValueError(f"{key} is no cross-attention key or value projection of this UNet")
    return f"{block}.{match[2]}"


def to_comfyui(lora: Lora, unet: bool = True) -> dict[str, Tensor]:
    """ComfyUI's layout (LORA_MODEL). Raises ValueError for a key or a pair that is not a LoRA's.

    unet: whether the LoRA is of a UNet's cross-attention and pooled text; else of any layers.
    """
    return _up_down_alpha(lora, lambda key: key.removesuffix(".weight"), unet)


def to_kohya(
    lora: Lora, num_res_blocks: Sequence[int] | None, base: Base | None, title: str, description: str = ""
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """kohya's layout with diffusers' names, which A1111, Forge and ComfyUI read; and the metadata they show.

    base: the family of the model; None when unknown, its fields are then left out.
    Raises ValueError for a key or a pair that is not a LoRA's.
    """

    def name(key: str) -> str:
        if key in _POOLED or num_res_blocks is None:
            own = key.removeprefix("diffusion_model.").removesuffix(".weight")
        else:
            own = diffusers_module(key, num_res_blocks)
        return "lora_unet_" + own.replace(".", "_")

    tensors = _up_down_alpha(lora, name, num_res_blocks is not None)
    ranks = {str(down.shape[0]) for _, down in lora.values()}
    rank = ranks.pop() if len(ranks) == 1 else "Dynamic"
    metadata = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": rank,
        "ss_network_alpha": rank,
        "ss_output_name": title,
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.title": title,
    }
    if description:
        metadata["modelspec.description"] = description
    if base is not None:
        metadata |= {
            "ss_base_model_version": base.version,
            "ss_v2": str(base.v2),
            "modelspec.architecture": f"{base.architecture}/lora",
            "modelspec.resolution": base.resolution,
            "modelspec.prediction_type": base.prediction,
        }
    return tensors, metadata


def to_peft(lora: Lora, num_res_blocks: Sequence[int] | None) -> tuple[dict[str, Tensor], dict]:
    """PEFT's layout for diffusers' UNet: the tensors of adapter_model.safetensors, and adapter_config.json as a dict.

    Raises ValueError for a key or a pair that is not a LoRA's.
    """
    if num_res_blocks is None:
        raise ValueError("PEFT's layout is written for SD1.x, SD2.x and SDXL alone: choose ComfyUI's or kohya's")
    tensors, ranks = {}, {}
    for key, (up, down) in _checked(lora):
        module = diffusers_module(key, num_res_blocks)
        tensors[f"base_model.model.{module}.lora_A.weight"] = _plain(down)
        tensors[f"base_model.model.{module}.lora_B.weight"] = _plain(up)
        ranks[module] = down.shape[0]
    common = max(ranks.values())
    others = {module: rank for module, rank in ranks.items() if rank != common}
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": common,
        "lora_alpha": common,
        "rank_pattern": others,
        "alpha_pattern": dict(others),
        "target_modules": sorted(ranks),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
    }
    return tensors, config


def layout_of(keys: Iterable[str]) -> str:
    """Which of LAYOUTS a file with these keys has, by their first words. Raises ValueError for none or several."""
    found = None
    for key in keys:
        layout = next((name for prefix, name in _PREFIX.items() if key.startswith(prefix)), None)
        if layout is None:
            raise ValueError(f"{key} is no LoRA key of ComfyUI, kohya or PEFT")
        if found not in (None, layout):
            raise ValueError(f"the file mixes layouts: {key} is of {layout}, keys before it are of {found}")
        found = layout
    if found is None:
        raise ValueError("the file holds no LoRA: it is empty")
    return found


def read(
    tensors: Mapping[str, Tensor], num_res_blocks: Sequence[int], config: Mapping | None = None
) -> dict[str, tuple[Tensor, Tensor]]:
    """The LoRA of a file in any of the layouts, its scale multiplied into B: (B, A) by the host's key.

    config: PEFT's adapter_config, without which PEFT's scale is taken as 1. A missing alpha also means scale 1. Where
    the scale is 1 tensors keep their dtype, else B is at least float32. Raises ValueError, naming the
    key, for one that is not of a cross-attention projection of this UNet, for half a pair and for bad values.
    """
    layout = layout_of(tensors)
    parse = {COMFYUI: _parse_comfyui, KOHYA: _parse_kohya, PEFT: _parse_peft}[layout]
    known = diffusers_blocks(num_res_blocks)
    parts: dict[str, dict[str, Tensor]] = {}
    origin: dict[tuple[str, str], str] = {}
    for name, tensor in tensors.items():
        parsed = parse(name, known)
        if parsed is None:
            raise ValueError(f"{name} is no LoRA of a cross-attention key or value projection of this UNet")
        key, part = parsed
        if part in parts.setdefault(key, {}):
            raise ValueError(f"{name} and {origin[key, part]} name the same weight")
        parts[key][part], origin[key, part] = _readable(name, tensor), name
    lora = {}
    for key, found in parts.items():
        missing = [part for part in ("up", "down") if part not in found]
        if missing:
            names = ", ".join(origin[key, part] for part in found)
            raise ValueError(f"{names}: the {' and '.join(missing)} half of this LoRA is missing")
        up, down = found["up"], found["down"]
        _check_pair(origin[key, "up"], up, down)
        scale = 1.0
        if "alpha" in found:
            scale = _alpha(origin[key, "alpha"], found["alpha"]) / down.shape[0]
        elif layout == PEFT and config is not None:
            scale = _peft_scale(config, diffusers_module(key, num_res_blocks), down.shape[0])
        lora[key] = (up if scale == 1 else scale * (up if up.dtype == torch.float64 else up.float()), down)
    return lora


def _parse_comfyui(name: str, known: Mapping[str, str]) -> tuple[str, str] | None:
    """(host's key, "up", "down" or "alpha") of a tensor's name, or None; so too the two below."""
    match = _COMFYUI.fullmatch(name)
    module = _KEY.fullmatch(f"{match[1]}.weight") if match else None
    return (module[0], _PART.get(match[2], match[2])) if module and module[1] in known else None


def _parse_kohya(name: str, known: Mapping[str, str]) -> tuple[str, str] | None:
    match = _KOHYA.fullmatch(name)
    # kohya writes diffusers' names for SD1.x and SD2.x, the host's for SDXL: both are read.
    by_name = {flat.replace(".", "_"): block for block, other in known.items() for flat in (block, other)}
    if not match or match[1] not in by_name:
        return None
    _, _, index, attention, _, which = match[2].split("_")
    projection = f"transformer_blocks.{index}.{attention}.to_{which}"
    return f"diffusion_model.{by_name[match[1]]}.{projection}.weight", _PART.get(match[3], match[3])


def _parse_peft(name: str, known: Mapping[str, str]) -> tuple[str, str] | None:
    match = _PEFT.fullmatch(name)
    block = {other: block for block, other in known.items()}.get(match[1]) if match else None
    return (f"diffusion_model.{block}.{match[2]}.weight", _PART[match[3]]) if block else None


def _peft_scale(config: Mapping, module: str, rank: int) -> float:
    """alpha / rank of a module as peft reads its config. Raises ValueError for a config of another kind or file."""
    if config.get("peft_type", "LORA") != "LORA" or config.get("use_dora") or config.get("bias", "none") != "none":
        raise ValueError("the adapter_config is not of a plain LoRA (peft_type LORA, no DoRA, bias none)")
    stated = _pattern(config.get("rank_pattern"), module, config.get("r", rank))
    if stated != rank:
        raise ValueError(f"adapter_config gives rank {stated} for {module}, but the file has {rank}")
    alpha = _pattern(config.get("alpha_pattern"), module, config.get("lora_alpha", rank))
    if not isinstance(alpha, int | float) or not isfinite(alpha):
        raise ValueError(f"adapter_config gives no number as alpha of {module}: {alpha!r}")
    return alpha / (sqrt(rank) if config.get("use_rslora") else rank)


def _pattern(patterns: Mapping | None, module: str, default):
    """What peft's rank_pattern or alpha_pattern says of a module: its keys are expressions for the end of a name."""
    for expression, value in (patterns or {}).items():
        try:
            if re.fullmatch(rf"(.*\.)?({expression})", module):
                return value
        except re.error as error:
            raise ValueError(f"adapter_config holds a broken pattern, {expression}: {error}") from error
    return default


def _up_down_alpha(lora: Lora, name_of, unet: bool) -> dict[str, Tensor]:
    tensors = {}
    for key, (up, down) in _checked(lora, unet):
        name = name_of(key)
        tensors[f"{name}.lora_up.weight"] = _plain(up)
        tensors[f"{name}.lora_down.weight"] = _plain(down)
        tensors[f"{name}.alpha"] = torch.tensor(float(down.shape[0]))
    return tensors


def _checked(lora: Lora, unet: bool = True) -> Iterable[tuple[str, tuple[Tensor, Tensor]]]:
    if not lora:
        raise ValueError("there is no LoRA to write: it has no projection")
    for key, (up, down) in lora.items():
        if unet and not _KEY.fullmatch(key) and key not in _POOLED:
            raise ValueError(f"{key} is no cross-attention key or value projection")
        _check_pair(key, up, down)
    return lora.items()


def _check_pair(name: str, up: Tensor, down: Tensor) -> None:
    if not (up.dim() == down.dim() == 2 and up.shape[1] == down.shape[0] > 0):
        raise ValueError(f"{name}: up {list(up.shape)} and down {list(down.shape)} are not [d_out, r] and [r, d]")


def _plain(tensor: Tensor) -> Tensor:
    """A copy as files want it: without a gradient, contiguous, sharing memory with nothing, on the CPU."""
    return tensor.detach().to("cpu", copy=True).contiguous()


def _readable(name: str, tensor: Tensor) -> Tensor:
    """The tensor, eight-bit floats as float32. Raises ValueError for other values; only an alpha may be an integer."""
    whole = not (tensor.is_floating_point() or tensor.is_complex())
    if not (tensor.dtype in _REAL or whole and name.endswith(".alpha")):
        raise ValueError(f"{name} holds {tensor.dtype}, not real numbers")
    tensor = tensor.float() if tensor.element_size() == 1 else tensor
    if not torch.isfinite(tensor).all():
        raise ValueError(f"{name} holds values that are not finite (NaN or infinity)")
    return tensor


def _alpha(name: str, tensor: Tensor) -> float:
    if tensor.numel() != 1:
        raise ValueError(f"{name} is no single number but {list(tensor.shape)}")
    return tensor.item()
