"""One concept's LoRA out of a file in any of the layouts: ComfyUI's, kohya's, PEFT's and Diffusers'.

Programs name the two factors in ways of their own (lora_up and lora_B, lora_down and lora_A, with or without the name
of an adapter); each is read in every layout.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from .lora_layouts import COMFYUI, KEY, KOHYA, LAYOUTS, PEFT, PROJECTION, check_pair, diffusers_blocks, diffusers_module
from .peft_config import PeftScales

DIFFUSERS = "diffusers"
READ = (*LAYOUTS, DIFFUSERS)
_PREFIX = {"diffusion_model.": COMFYUI, "lora_": KOHYA, "base_model.model.": PEFT}
_PREFIX |= dict.fromkeys(
    ("unet.", "text_encoder.", "text_encoder_2.", "down_blocks.", "mid_block.", "up_blocks."), DIFFUSERS
)
_DOWN = ("lora_down", "lora_A", "lora.down", "lora_linear_layer.down", "_lora.down")
_UP = ("lora_up", "lora_B", "lora.up", "lora_linear_layer.up", "_lora.up")
_SIDES = dict.fromkeys(_DOWN, "down") | dict.fromkeys(_UP, "up")
# Such as .lora_A.weight, .lora_A.default.weight, _lora.down.weight and .alpha.
_PART = rf"(?:\.?({'|'.join(map(re.escape, _SIDES))})(?:\.\w+)?\.weight|\.(alpha))"
_COMFYUI = re.compile(rf"(diffusion_model\..+?){_PART}")
_KOHYA = re.compile(rf"lora_unet_(.+?)_({PROJECTION.format('_')}){_PART}")
# Narrower floats, and others of eight bits, torch cannot compute with.
_REAL = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
_PEFT = re.compile(rf"base_model\.model\.(.+?)\.({PROJECTION.format('[.]')}){_PART}")
_DIFFUSERS = re.compile(rf"(?:unet\.)?(.+?)\.({PROJECTION.format('[.]')}){_PART}")


def layout_of(keys: Iterable[str]) -> str:
    """Which of READ a file with these keys has, by their first words. Raises ValueError for none or several."""
    found = None
    for key in keys:
        layout = next((name for prefix, name in _PREFIX.items() if key.startswith(prefix)), None)
        if layout is None:
            raise ValueError(f"{key} is no LoRA key of ComfyUI, kohya, PEFT or Diffusers")
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

    config: PEFT's adapter_config, which Diffusers' files may have too; without it their scale is taken as 1. A missing
    alpha also means scale 1. Where the scale is 1 tensors keep their dtype, else B is at least float32. Raises
    ValueError, naming the key, for one that is not of a cross-attention projection of this UNet, for half a pair and
    for bad values.
    """
    layout = layout_of(tensors)
    parse = {COMFYUI: _parse_comfyui, KOHYA: _parse_kohya, PEFT: _parse_peft, DIFFUSERS: _parse_diffusers}[layout]
    known = diffusers_blocks(num_res_blocks)
    scales = PeftScales(config) if layout in (PEFT, DIFFUSERS) and config is not None else None
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
        check_pair(origin[key, "up"], up, down)
        scale = 1.0
        if "alpha" in found:
            scale = _alpha(origin[key, "alpha"], found["alpha"]) / down.shape[0]
        elif scales is not None:
            scale = scales.of(diffusers_module(key, num_res_blocks), down.shape[0])
        if scale != 1:
            up = scale * (up if up.dtype == torch.float64 else up.float())
            if not torch.isfinite(up).all():
                raise ValueError(f"{origin[key, 'up']} times its scale {scale:g} is not finite")
        lora[key] = (up, down)
    return lora


def idle(lora: Mapping[str, tuple[Tensor, Tensor]]) -> int:
    """How many of a LoRA's pairs (B, A) change nothing: those of alpha 0, and those with a factor of zeros."""
    return sum(not (up.any() and down.any()) for up, down in lora.values())


def _side(match: re.Match) -> str:
    """Which part of a pair the last two groups of a name say."""
    side, alpha = match.groups()[-2:]
    return alpha or _SIDES[side]


def _parse_comfyui(name: str, known: Mapping[str, str]) -> tuple[str, str] | None:
    """(host's key, "up", "down" or "alpha") of a tensor's name, or None; so too the three below."""
    match = _COMFYUI.fullmatch(name)
    module = KEY.fullmatch(f"{match[1]}.weight") if match else None
    return (module[0], _side(match)) if module and module[1] in known else None


def _parse_kohya(name: str, known: Mapping[str, str]) -> tuple[str, str] | None:
    match = _KOHYA.fullmatch(name)
    # kohya writes diffusers' names for SD1.x and SD2.x, the host's for SDXL: both are read.
    by_name = {flat.replace(".", "_"): block for block, other in known.items() for flat in (block, other)}
    if not match or match[1] not in by_name:
        return None
    _, _, index, attention, _, which = match[2].split("_")
    projection = f"transformer_blocks.{index}.{attention}.to_{which}"
    return f"diffusion_model.{by_name[match[1]]}.{projection}.weight", _side(match)


def _parse_peft(name: str, known: Mapping[str, str]) -> tuple[str, str] | None:
    return _of_diffusers(_PEFT.fullmatch(name), known)


def _parse_diffusers(name: str, known: Mapping[str, str]) -> tuple[str, str] | None:
    # Its first files have the attention's processor between: attn2.processor.to_k_lora.down.weight.
    return _of_diffusers(_DIFFUSERS.fullmatch(name.replace(".attn2.processor.to_", ".attn2.to_")), known)


def _of_diffusers(match: re.Match | None, known: Mapping[str, str]) -> tuple[str, str] | None:
    block = {other: block for block, other in known.items()}.get(match[1]) if match else None
    return (f"diffusion_model.{block}.{match[2]}.weight", _side(match)) if block else None


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
