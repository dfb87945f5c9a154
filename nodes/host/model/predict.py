"""One way to call the diffusion model: as the host's own sampler calls it, under autograd where it is asked for.

The host makes the conditioning (SDXL's y, the extra channels of an inpainting UNet), its wrappers and patches run, and
they read the same options as in sampling (sigmas, cond_or_uncond). What comes back is x_0, whatever the model predicts.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from comfy import model_prefetch, sampler_helpers, samplers
from comfy.ldm.modules.attention import attention_pytorch
from comfy.model_patcher import create_model_options_clone
from comfy.patcher_extension import WrappersMP
from comfy_api.torch_helpers.torch_compile import COMPILE_KEY
from torch import Tensor

from ....mace.pipeline.attention_loss import in_order

TIMESTEPS = 1000
# The host takes the ends of its percent for "before all noise" and "after it", whatever the schedule.
_EDGE = 1e-6


def sigmas_at(model, timesteps: Sequence[int] | Tensor) -> Tensor:
    """sigma [B], float32 on the model's device, at timesteps t of 0..999 (Eq. 5), for any schedule of the host.

    t is the share t / 999 of the way to all noise, by the host's own percent; in SD's schedules that is sigma(t).
    """
    sampling = model.get_model_object("model_sampling")
    shares = (min(max(1 - float(t) / (TIMESTEPS - 1), _EDGE), 1 - _EDGE) for t in timesteps)
    sigmas = [float(sampling.percent_to_sigma(share)) for share in shares]
    return torch.tensor(sigmas, dtype=torch.float32, device=model.load_device)


def noisy(model, latents: Tensor, noise: Tensor, timesteps: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
    """(x_t in the host's scale, sigmas [B]) of latents [B, ch, h, w] in the VAE's scale at timesteps [B]."""
    sigmas = sigmas_at(model, timesteps)
    scaled = model.model.process_latent_in(latents)
    shaped = sigmas.view(-1, *[1] * (latents.dim() - 1))
    # The host adds the latents into the noise in place.
    return model.get_model_object("model_sampling").noise_scaling(shaped, noise.clone(), scaled), sigmas


def in_pytorch(func, *args, **kwargs) -> Tensor:
    """The host's attention override for training: PyTorch's own kernel, since others have no backward."""
    return attention_pytorch(*args, **kwargs)


def together(model, sigmas: Tensor) -> list[Tensor]:
    """Which of the samples at sigmas [B] are computed in one call: row numbers.

    All samples of a sampling have one sigma, so other packs' functions read that of the first alone (Deep Shrink, for
    one). Where a MODEL has such functions, samples at different sigmas are computed one after the other.
    """
    options = model.model_options.get("transformer_options", {})
    others = [options.get(name) for name in ("patches", "patches_replace", "wrappers")]
    others += [model.model_options.get("model_function_wrapper"), *map(dict, model.wrappers.values())]
    if not any(others):
        return [torch.arange(len(sigmas), device=sigmas.device)]
    return [(sigmas == one).nonzero()[:, 0] for one in sigmas.unique()]


def uncompiled(model):
    """The MODEL without the host's torch.compile: what was compiled neither asks for a call's patches nor trains."""
    if not model.get_wrappers(WrappersMP.APPLY_MODEL, COMPILE_KEY):
        return model
    found = model.clone()
    found.remove_wrappers_with_key(WrappersMP.APPLY_MODEL, COMPILE_KEY)
    return found


@contextmanager
def _running(model) -> Iterator[None]:
    """The host's own frame of a sampling run."""
    model.pre_run()
    try:
        yield
    finally:
        model_prefetch.cleanup_prefetch_queues()
        model.cleanup()


def predict(
    model,
    x: Tensor,
    sigmas: Tensor,
    contexts: Tensor,
    pooled: Tensor | None = None,
    replace: Callable[[dict], None] = lambda attn2: None,
) -> Tensor:
    """x_0 [B, ch, h, w] float32, in the model's own scale, that a loaded MODEL predicts from x at sigmas [B].

    contexts: text embeddings [B, N, d].  pooled: pooled text [B, c], None where the model reads none.  replace: may put
    patches into the attn2 replace patches of this call, {(block, number, index): patch}; others' are in there; samples
    that `together` parts are not given with it. Outside inference mode, where models train, self-attention runs in
    PyTorch's kernel. The MODEL's own options are left as they are.
    """
    parts = []
    for rows in (parted := together(model, sigmas)):
        more = {} if pooled is None else {"pooled_output": pooled[rows]}
        parts.append(predict_given(model, x[rows], sigmas[rows], [[contexts[rows], more]], replace))
    return in_order(parts, parted)


def predict_given(
    model, x: Tensor, sigmas: Tensor, conditioning: list, replace: Callable[[dict], None] = lambda attn2: None
) -> Tensor:
    """As `predict`, for the host's CONDITIONING with one row a latent."""
    model = uncompiled(model)
    options = create_model_options_clone(model.model_options)
    transformer = options.setdefault("transformer_options", {})
    replaced = transformer["patches_replace"] = {
        name: dict(group) for name, group in transformer.get("patches_replace", {}).items()
    }
    replace(replaced.setdefault("attn2", {}))
    # A sampler's schedule falls to 0; patches look for the place of sigma in it. To look for the levels of several
    # samples waits for the device.
    levels = sigmas if len(sigmas) == 1 else sigmas.unique().flip(0)
    transformer["sample_sigmas"] = torch.cat([levels, sigmas.new_zeros(1)])
    # Also without gradients: what is trained towards attends as what trains does. The host samples in inference mode.
    if not torch.is_inference_mode_enabled():
        transformer["optimized_attention_override"] = in_pytorch
    return call(model, x, sigmas, conditioning, options)


def call(model, x: Tensor, sigmas: Tensor, conditioning: list, options: dict, **more) -> Tensor:
    """What a loaded MODEL predicts for the host's CONDITIONING, called as the sampler calls it.

    options: model options of this call's own, which the host changes.  more: for the host's process_conds.
    """
    transformer = options.get("transformer_options", {})
    # The host's caches fill what stands there: a sampling gives them one of its own, and so does this.
    if hasattr(cache := transformer.get("easycache"), "clone"):
        transformer["easycache"] = cache.clone()
    conds = {"positive": sampler_helpers.convert_cond(conditioning)}
    with _running(model):
        sampler_helpers.prepare_model_patcher(model, conds, options)
        samplers.filter_registered_hooks_on_conds(conds, options)
        samplers.cast_to_load_options(options, device=x.device, dtype=model.model_dtype())
        conds = samplers.process_conds(model.model, x, conds, x.device, latent_image=torch.zeros_like(x), **more)
        (found,) = samplers.calc_cond_batch(model.model, [conds["positive"]], x, sigmas, options)
    return found
