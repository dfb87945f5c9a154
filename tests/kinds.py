"""Diffusion models of every kind with random weights (see devtools.random_models), without a file or a CLIP."""

from functools import lru_cache

import torch

from devtools import random_models

# Kinds whose files are told by more than the UNet's own keys, and what the host's patch node makes of others.
PATCHED = {"lcm": ("sd15", "lcm", False), "v_zsnr": ("sd15", "v_prediction", True)}
POOLED = 1280


def unet(kind, dtype=torch.float32, **options):
    """A MODEL of a small UNet in this process: one of the random models' kinds, or of PATCHED."""
    if kind in PATCHED:
        base, *how = PATCHED[kind]
        return sampled_as(unet(base, dtype, **options), *how)
    with torch.inference_mode():
        return _made(kind, dtype, options)


# Some tests make a model of one kind over and over. Two, for they are large.
@lru_cache(maxsize=2)
def _state(kind):
    """The tensors of a diffusion model's file, float32."""
    prefix, v_bias = "model.diffusion_model.", random_models.KINDS[kind].v_bias
    state = {}
    for key, tensor in random_models.layout(kind, small=True).items():
        if key.startswith(prefix):
            state[key[len(prefix) :]] = random_models.filled(key, tensor.shape, 0, v_bias=v_bias)
        elif not tensor.is_meta:
            state[key] = tensor
    return state


def _made(kind, dtype, options):
    import comfy.sd

    markers = {name for name, _ in random_models.KINDS[kind].extra}
    # The model may take the tensors for its own: it gets copies.
    state = {
        key: tensor.clone() if key in markers else tensor.to(dtype, copy=True) for key, tensor in _state(kind).items()
    }
    model = comfy.sd.load_diffusion_model_state_dict(state, model_options=options)
    # How the host makes a second one, as its loaders say it of files.
    model.cached_patcher_init = (lambda disable_dynamic=True: _made(kind, dtype, options), ())
    return model


def sampled_as(model, sampling, zsnr=False):
    """The MODEL with the host's ModelSamplingDiscrete."""
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

    return ModelSamplingDiscrete().patch(model, sampling, zsnr)[0]


def conditioning(model, count=1, seed=0):
    """(contexts [count, 77, d], pooled text [count, 1280] or None) at random."""
    generator = torch.Generator().manual_seed(seed)
    config = model.model.model_config.unet_config
    contexts = torch.randn(count, 77, config["context_dim"], generator=generator)
    pooled = torch.randn(count, POOLED, generator=generator)
    return contexts, pooled if config["adm_in_channels"] else None


def latents(count=1, side=8, seed=1):
    return torch.randn(count, 4, side, side, generator=torch.Generator().manual_seed(seed))
