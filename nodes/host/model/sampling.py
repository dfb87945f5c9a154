"""How a MODEL predicts, as checkpoints say it, and how the host will take it from a file.

A node such as ModelSamplingDiscrete puts another model_sampling in place of the model's own; that counts, not what
the model was loaded as.
"""

import math
from collections.abc import Mapping

import comfy.latent_formats
import comfy.model_base
import comfy.model_sampling
import torch
from torch import Tensor, nn

# Sigmas come back from a file through their logarithms.
SAME_SIGMA = 1e-4
_NAMES = {comfy.model_base.ModelType.EPS: "epsilon", comfy.model_base.ModelType.V_PREDICTION: "v"}


def sampling_keys(model) -> tuple[str | None, dict[str, Tensor]]:
    """(modelspec.predict_key, the marker tensors by which loaders recognise how the model predicts).

    None and no tensors where files have no way to say it.
    """
    sampling, form = (model.get_model_object(name) for name in ("model_sampling", "latent_format"))
    kinds = comfy.model_sampling
    how = _class_with(sampling, "calculate_denoised"), _class_with(sampling, "timestep")
    if how == (kinds.EPS, kinds.ModelSamplingDiscrete):
        return "epsilon", {}
    if how == (kinds.V_PREDICTION, kinds.ModelSamplingDiscrete):
        zero = {"ztsnr": torch.tensor([])} if sampling.zsnr else {}
        return "v", {"v_pred": torch.tensor([]), **zero}
    if how == (kinds.V_PREDICTION, kinds.ModelSamplingContinuousEDM):
        limits = {name: torch.as_tensor(getattr(sampling, name)) for name in ("sigma_max", "sigma_min")}
        return None, {f"edm_vpred.{name}": limit.detach().cpu().float() for name, limit in limits.items()}
    playground = isinstance(form, comfy.latent_formats.SDXL_Playground_2_5)
    if how == (kinds.EDM, kinds.ModelSamplingContinuousEDM) and playground:
        # Loaders know it by these two, which the host's own saving leaves out.
        return None, {"edm_mean": form.latents_mean.flatten(), "edm_std": form.latents_std.flatten()}
    return None, {}


def prediction(model) -> str:
    """What a MODEL predicts: epsilon, v, or in the host's words (edm), for "epsilon" would be wrong of it."""
    if "model_sampling" not in model.object_patches:
        kind = model.model.model_type
        return _NAMES.get(kind, kind.name.lower())
    key, _ = sampling_keys(model)
    return key or _class_with(model.get_model_object("model_sampling"), "calculate_denoised").__name__.lower()


def samples_as_saved(model, tensors: Mapping[str, Tensor], prefix: str) -> bool:
    """Whether the host will sample a file of these tensors as it samples the MODEL.

    prefix: of the diffusion model's names in the file.
    """
    sampling, form = _as_loaded(model, tensors, prefix)
    own, own_form = (model.get_model_object(name) for name in ("model_sampling", "latent_format"))
    return _same_sampling(sampling, own) and type(form) is type(own_form)


def _as_loaded(model, tensors: Mapping[str, Tensor], prefix: str) -> tuple[nn.Module, object]:
    """(model_sampling, latent_format) that the host gives a file of the MODEL's family with these tensors."""
    kind = type(model.model.model_config)
    if "model_type" not in kind.get_model.__code__.co_names:
        # Families that predict in one way, whatever is in the file. While a MODEL is loaded, its patches stand there.
        own = model.object_patches_backup
        return tuple(own.get(name, getattr(model.model, name)) for name in ("model_sampling", "latent_format"))
    config = kind(model.model.model_config.unet_config)
    found = config.model_type(tensors, prefix)
    return comfy.model_base.model_sampling(config, found), config.latent_format


def described(sampling) -> str:
    """A sampling in words: how it predicts, its schedule and what that is set to."""
    kinds = [_class_with(sampling, name) for name in ("calculate_denoised", "timestep")]
    names = [kind.__name__ for kind in kinds if kind is not None]
    told = {name: value for name, value in numbers_of(sampling).items() if name in ("zsnr", "shift", "multiplier")}
    if not hasattr(sampling, "shift"):
        told |= {name: float(getattr(sampling, name)) for name in ("sigma_min", "sigma_max")}
    return ", ".join([*names, *(f"{name} {value:g}" for name, value in told.items())])


def _class_with(sampling, name: str) -> type | None:
    """The class that a sampling has this method from."""
    return next((kind for kind in type(sampling).__mro__ if name in vars(kind)), None)


def _same_sampling(one: nn.Module, other: nn.Module) -> bool:
    if one is other:
        return True
    methods = [_methods(x) for x in (one, other)]
    numbers = [numbers_of(x) for x in (one, other)]
    buffers = [dict(x.state_dict()) for x in (one, other)]
    if methods[0] != methods[1] or any(set(pair[0]) != set(pair[1]) for pair in (numbers, buffers)):
        return False
    alike = all(_close(value, numbers[1][name]) for name, value in numbers[0].items())
    return alike and all(
        tensor.shape == buffers[1][name].shape
        and torch.allclose(tensor.cpu(), buffers[1][name].cpu(), SAME_SIGMA, SAME_SIGMA)
        for name, tensor in buffers[0].items()
    )


def _methods(sampling: nn.Module) -> dict:
    return {name: getattr(type(sampling), name) for name in dir(type(sampling)) if name not in dir(nn.Module)}


def _close(one, other) -> bool:
    if isinstance(one, str) or isinstance(other, str):
        return one == other
    return math.isclose(one, other, rel_tol=SAME_SIGMA)


def numbers_of(module: nn.Module) -> dict:
    """The numbers and texts a module is set to, besides its tensors."""
    return {name: value for name, value in vars(module).items() if isinstance(value, bool | int | float | str)}
