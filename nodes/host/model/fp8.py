"""Edited weights of fp8 models, held in a wider format so that the edit keeps its precision.

The host adds a patch to a weight and rounds the sum back to the dtype it holds the weight in. In fp8 a step is as
large as most changes, and the edit drowns. fp8 to fp16 or bf16 loses nothing, so the edited layers are exchanged, for
the clone that carries the edit alone, by layers of the host's own kind that hold the same weights in the dtype the
model computes in. The patches stay patches, and everything that reads them sees the same values as before.
"""

import torch
from comfy import ops, utils
from torch import nn

FP8 = tuple(getattr(torch, name) for name in ("float8_e4m3fn", "float8_e5m2") if hasattr(torch, name))
# Where a layer keeps the wide one made from it: made once, since the host's dynamic memory gives every layer a place.
_MADE = "mace_wide"


class Wide:
    """What the wide layers have in common. stored: the dtype their weights came in."""

    stored: torch.dtype

    def take(self, weights: dict[str, torch.Tensor], dtype: torch.dtype, device: torch.device):
        """The layer with these weights (by their names in it), in `dtype`."""
        # Freshly made layers of a host with dynamic memory have no weights yet, so they are set, not copied into.
        for name, weight in weights.items():
            wide = weight.detach().to(device, dtype, copy=True)
            setattr(self, name, nn.Parameter(wide, requires_grad=False))
        self.stored = weights["weight"].dtype
        return self


class WideLinear(Wide, ops.manual_cast.Linear):
    """A linear map whose weight came in fp8."""

    @classmethod
    def like(cls, layer: nn.Linear):
        """An empty layer of the same shape."""
        return cls(layer.in_features, layer.out_features, bias=False, device="meta")


class WideConv2d(Wide, ops.manual_cast.Conv2d):
    """A convolution whose weight came in fp8."""

    @classmethod
    def like(cls, layer: nn.Conv2d):
        """An empty layer of the same shape."""
        shape = (layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding, layer.dilation)
        return cls(*shape, layer.groups, bias=False, padding_mode=layer.padding_mode, device="meta")


def computed_in(model) -> torch.dtype:
    """The dtype a MODEL computes in: its own, or what the host casts fp8 weights to."""
    return model.model.get_dtype_inference()


def widen(clone, keys: list[str], patches: dict) -> None:
    """Exchanges the layers of those `keys` whose weights are plain fp8, in this clone of a MODEL alone.

    patches: what `unet.key_patches` gives of it. Layers of other kinds (norms) stay, and the host rounds what is edited
    in them.
    """
    dtype = computed_in(clone)
    taken = 0
    for name in dict.fromkeys(key.rpartition(".")[0] for key in keys):
        if name in clone.object_patches:
            continue
        layer = utils.get_attr(clone.model, name)
        wide = layer if isinstance(layer, Wide) else _wide(layer, name, patches, dtype, clone.offload_device)
        if wide is not None:
            clone.add_object_patch(name, wide)
            taken += sum(weight.nbytes for weight in wide.parameters())
    if taken:
        clone.size = clone.model_size() + taken


def _wide(layer: nn.Module, name: str, patches: dict, dtype: torch.dtype, device: torch.device):
    """The wide layer of one, None where it is no plain fp8 layer of a kind that has them."""
    kind = WideLinear if isinstance(layer, nn.Linear) else WideConv2d if isinstance(layer, nn.Conv2d) else None
    if kind is None:
        return None
    if _MADE not in vars(layer):
        weights = {own: patches[f"{name}.{own}"][0][0] for own, _ in layer.named_parameters(recurse=False)}
        stored = weights["weight"].dtype
        plain = all(type(weight) in (torch.Tensor, nn.Parameter) for weight in weights.values())
        if not plain or (stored not in FP8 and _held_in(layer) not in FP8):
            return None
        # With dynamic memory a file's own weights stay, and are rounded to fp8 on their way to the device.
        dtype = dtype if stored in FP8 else stored
        # Past nn.Module's own setattr, which would make it a part of the layer.
        vars(layer)[_MADE] = kind.like(layer).take(weights, dtype, device)
    return vars(layer)[_MADE]


def _held_in(layer: nn.Module) -> torch.dtype | None:
    """The dtype that the host's dynamic memory holds a layer's weight in on the device, where it says so."""
    return getattr(layer, "weight_comfy_model_dtype", None)


def own_wide_layers(copy) -> None:
    """Gives a deep copy of a MODEL wide layers of its own, since object patches are shared by clones."""
    for name, layer in copy.object_patches.items():
        if isinstance(layer, Wide):
            # From the copy's own, freshly loaded layer: the shared one may hold another clone's patches just now.
            own = utils.get_attr(copy.model, name)
            weights = dict(own.named_parameters(recurse=False))
            copy.object_patches[name] = type(layer).like(own).take(weights, layer.weight.dtype, copy.offload_device)


def as_stored(model, key: str, weight: torch.Tensor) -> torch.Tensor:
    """A weight from `unet.key_patches` as its file had it, whether or not its wide layer stands in the model now."""
    layer = utils.get_attr(model.model, key.rpartition(".")[0])
    return weight.to(layer.stored) if isinstance(layer, Wide) else weight


def fp8_note(edited, keys: list[str]) -> str | None:
    """What becomes of a change to the weights `keys` of an fp8 MODEL, in words; None for other MODELs."""
    names = [key.rpartition(".")[0] for key in keys]
    wide = {name: layer for name in names if isinstance(layer := edited.object_patches.get(name), Wide)}
    if wide:
        held = sum(weight.nbytes for layer in wide.values() for weight in layer.parameters())
        name = str(next(iter(wide.values())).weight.dtype).removeprefix("torch.")
        note = (
            f"fp8 model: the edited weights are held in {name} ({held / 1e6:.0f} MB), so the change keeps its precision"
        )
        rest = sum(name not in wide for name in names)
        return note + (f"; {rest} small ones stay in fp8, and the host rounds the changes in them" if rest else "")
    if edited.model_dtype() in FP8:
        return "fp8 weights: the host rounds the change back to fp8; load the fp16 or bf16 model to keep it whole"
    return None
