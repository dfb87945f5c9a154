"""The host's diffusion model as the numerics need it: its cross-attention projections and patches on them."""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator

import comfy.lora
import comfy.model_base
import torch
from comfy import model_management, utils
from comfy.model_patcher import get_key_weight

from .bare import bare_network
from .fp8 import FP8, as_stored, widen
from .ports import known_ports

PROJECTIONS = {"both": "kv", "keys": "k", "values": "v"}
# Other families have layers of this name too (LTX), but no such blocks.
_BLOCKS = r"^diffusion_model\.(input_blocks|middle_block|output_blocks)\..*"
_ATTN2 = {name: re.compile(rf"{_BLOCKS}\.attn2\.to_[{letters}]\.weight$") for name, letters in PROJECTIONS.items()}

# What was done to a MODEL travels with it: a tuple of records for the provenance, oldest first.
ATTACHMENT = "mace_stages"
# The MODEL before any refinement, and the last Refinement, travel with a refined MODEL too.
BASE_MODEL, REFINEMENT = "mace_base", "mace_refinement"
# The differences that refinements put on its weights, so that they can be told from what else is there.
REFINED_BY = "mace_refined"

# What the names of a MODEL's own weights begin with.
DIFFUSION = "diffusion_model."
_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def is_unet(model) -> bool:
    """Whether a MODEL is a Stable Diffusion UNet: one whose cross-attention reads the text encoder's embeddings."""
    return any(_ATTN2["both"].match(key) for key in model.model.state_dict())


def cross_attention_keys(model, projections: str = "both") -> list[str]:
    """The weights' names of to_k and to_v of every cross-attention of a MODEL.

    Raises ValueError for a model without such layers (anything but a Stable Diffusion UNet).
    """
    keys = [key for key in model.model.state_dict() if _ATTN2[projections].match(key)]
    if not keys:
        known = [name for group in known_ports(model) or () for name in group]
        names = " and ".join(known[:2])
        reads = f" It reads its prompt through {names}: CFR Refine and Erase Concepts take it." if known else ""
        raise ValueError(
            f"{type(model.model).__name__} has no cross-attention layers of Stable Diffusion's UNets (SD1.x, SD2.x, "
            f"SDXL and their fine-tunes), which this node works on.{reads}"
        )
    return keys


def weight_key(layer: str) -> str:
    """The host's key of the weight of a diffusion model's layer."""
    return f"diffusion_model.{layer}.weight"


def pooled_key(model) -> str | None:
    """The name of the weight that reads the pooled text of a MODEL (SDXL and its kin), None where none does."""
    key = "diffusion_model.label_emb.0.0.weight"
    # Others have a label_emb for pictures (unCLIP).
    reads = isinstance(model.model, comfy.model_base.SDXL | comfy.model_base.SDXLRefiner)
    return key if reads and key in model.model.state_dict() else None


def is_quantised(weight: torch.Tensor) -> bool:
    """Whether a weight is anything but plain floating-point numbers (plain fp8 counts as such)."""
    return weight.dtype not in _FLOATS + FP8 or type(weight).__name__ == "QuantizedTensor"


def check_plain(key: str, weight: torch.Tensor) -> None:
    """Raise ValueError for a quantised weight, whose `key` is told."""
    if is_quantised(weight):
        raise ValueError(
            f"{key} is quantised ({weight.dtype}), and an edit needs the full weights: load the fp16, bf16 or fp32 "
            "model"
        )


def check_editable(model, keys: Iterable[str]) -> None:
    """Raise ValueError where one of the weights `keys` of a MODEL is quantised: the host would round an edit away."""
    for key in keys:
        check_plain(key, get_key_weight(model.model, key)[0])


def matrix_shape(model, key: str) -> tuple[int, int]:
    """(d_out, d) of a projection of a MODEL, as its layer says: quantised weights are packed."""
    layer = utils.get_attr(model.model, key.rpartition(".")[0])
    return layer.out_features, layer.in_features


def key_patches(model) -> dict[str, list]:
    """The diffusion model's weights and their patches, [(weight, convert), *patches] by key, as of `get_key_patches`.

    The host's own asks for all that a model saves, and quantised layers save more than they hold (scales, formats).
    """
    return _split_state(model, DIFFUSION)[0]


def _split_state(model, prefix: str | None) -> tuple[dict[str, list], dict[str, torch.Tensor]]:
    """`key_patches` of the weights with a prefix, and of what is saved with it that which is no part of a layer."""
    found, rest = {}, {}
    for key, saved in model.model_state_dict(prefix).items():
        try:
            weight, _, convert = get_key_weight(model.model, key)
        except AttributeError:
            rest[key] = saved
            continue
        weight = model.backup[key].weight if key in model.backup else weight
        weight = model.hook_backup[key][0] if key in model.hook_backup else weight
        found[key] = [(weight, convert or _as_it_is), *model.patches.get(key, ())]
    return found, rest


def _as_it_is(weight: torch.Tensor, **_) -> torch.Tensor:
    return weight


def with_patches(patches: list, key: str, device: torch.device) -> torch.Tensor:
    """Any weight with all its patches in it, as a float32 copy on `device`. patches: see `effective_weight`."""
    weight, convert = patches[0]
    copy = convert(model_management.cast_to_device(weight, device, torch.float32, copy=True), inplace=True)
    return comfy.lora.calculate_weight(patches[1:], copy, key, intermediate_dtype=torch.float32)


def effective_weight(patches: list, key: str, device: torch.device) -> torch.Tensor:
    """A projection as the artist sees it, with all upstream patches in it, as a float32 copy on `device`.

    patches: what `key_patches` gives for the key. Raises ValueError for quantised weights, for a weight
    that is not finite and for anything but a matrix.
    """
    check_plain(key, patches[0][0])
    copy = with_patches(patches, key, device)
    if copy.dim() != 2:
        raise ValueError(f"{key} is not a matrix but {tuple(copy.shape)}")
    if not torch.isfinite(copy).all():
        raise ValueError(f"{key} holds values that are not finite (NaN or infinity): the model is damaged")
    return copy


def patched(model, keys: list[str], delta: Callable, strength: float, step: Callable[[int], None]):
    """A clone of MODEL whose weights `keys` get `strength` times delta(key, effective weight) added as patches.

    delta: (key, float32 [d_out, d]) -> float32 [d_out, d]. The model's own weights are not touched. The patches lie
    where the host keeps the model when it is not in use, in the weight's own dtype (float32 for fp8, which
    is too coarse for a difference); fp8 weights are held in a wider format (see .fp8). step(1) after each weight.
    """
    clone = model.clone()
    all_patches = key_patches(clone)
    changes = {}
    for key in keys:
        model_management.throw_exception_if_processing_interrupted()
        stored = all_patches[key][0][0].dtype
        change = delta(key, effective_weight(all_patches[key], key, model.load_device))
        dtype = stored if stored in _FLOATS[1:] else torch.float32
        changes[key] = ("diff", (change.to(dtype).to(model.offload_device),))
        step(1)
    add_changes(clone, changes, strength, all_patches)
    return clone


def add_changes(clone, changes: dict[str, tuple], strength: float, patches: dict) -> None:
    """Adds patches to a clone of a MODEL, whose fp8 weights are held in a wider format first (see .fp8).

    changes: the host's patches by weight.  patches: what `key_patches` gives of the clone. Raises ValueError for
    weights that the host does not take patches of.
    """
    widen(clone, list(changes), patches)
    missing = set(changes) - set(clone.add_patches(changes, strength))
    if missing:
        raise ValueError(f"the host did not take the patches of {sorted(missing)[0]} and {len(missing) - 1} others")


def tensor_bytes(tensor: torch.Tensor) -> Iterator[bytes | memoryview]:
    """What a tensor holds, to be hashed: dtype and shape, then its bytes; of a quantised one those of all its parts."""
    if hasattr(tensor, "__tensor_flatten__"):
        names, how = tensor.__tensor_flatten__()
        yield f"{type(tensor).__qualname__} {sorted(names)} {how!r};".encode()
        for name in sorted(names):
            yield from tensor_bytes(getattr(tensor, name))
        return
    # Other packs' own kinds (GGUF's) hold packed bytes, and answer to views in ways of their own.
    plain = type(tensor) in (torch.Tensor, torch.nn.Parameter)
    raw = _plain_bytes(tensor.detach() if plain else tensor.detach().as_subclass(torch.Tensor))
    kind = "tensor" if plain else type(tensor).__qualname__
    yield f"{kind} {tensor.dtype} {tuple(tensor.shape)} {getattr(tensor, 'tensor_type', '')};".encode()
    yield memoryview(raw.numpy())


def _plain_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor's bytes, uint8 [n] on the CPU. A copy: weights that were moved with gradients on refuse views."""
    copy = torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor)
    return copy.reshape(-1).view(torch.uint8)


def weights_sha256(model, prefix: str | None = DIFFUSION, is_read: Callable[[str], bool] = lambda name: True) -> str:
    """SHA-256 over a patcher's unpatched weights, the diffusion model's: names, dtypes and bytes in the names' order.

    Of any format, also those that cannot be edited: nodes that only draw with the model ask for it too. Parts that are
    put in place of its own while it is loaded do not count.  prefix: of the names; None for all.  is_read: whether a
    weight counts, by its name.
    """
    digest = hashlib.sha256()
    with bare_network(model):
        patches, rest = _split_state(model, prefix)
    for key in filter(is_read, sorted(patches)):
        weight = as_stored(model, key, patches[key][0][0])
        if type(weight) in (torch.Tensor, torch.nn.Parameter):
            # As it was before other formats were read: checkpoints state this hash.
            digest.update(f"{key} {weight.dtype} {tuple(weight.shape)}".encode())
            digest.update(_plain_bytes(weight.detach()).numpy())
            continue
        digest.update(key.encode())
        for part in tensor_bytes(weight):
            digest.update(part)
    for key in filter(is_read, sorted(rest)):
        # Some packs add tensors of no content to what is saved, by which the host counts memory.
        if not rest[key].is_meta:
            digest.update(key.encode())
            for part in tensor_bytes(rest[key]):
                digest.update(part)
    return digest.hexdigest()
