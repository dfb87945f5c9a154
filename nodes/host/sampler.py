"""The host's sampler, and pictures as files hold them."""

import inspect

import comfy.sample
import latent_preview
import torch
from comfy import model_management
from comfy.k_diffusion import sampling as k_diffusion
from comfy.utils import ProgressBar
from torch import Tensor

SHARE_OF_MEMORY = 0.1


def eight_bit(pictures: Tensor) -> Tensor:
    """Pictures [n, H, W, C] as a file would hold them, so that what is kept and what is made new are the same."""
    return (pictures[..., :3].float().clamp(0, 1) * 255).round().to("cpu", torch.uint8)


def draws_noise(sampler_name: str) -> bool:
    """Whether a sampler may draw noise at every step, which then depends on the batch it runs in."""
    function = getattr(k_diffusion, f"sample_{sampler_name}", None)
    return function is not None and "noise_sampler" in inspect.signature(function).parameters


def sampled(model, noise, positive, negative, empty, settings: dict, seed: int, progress: ProgressBar, each: float = 1):
    """Latents of the host's sampler on the CPU, float32. settings: steps, cfg, sampler_name and scheduler.

    Advances progress by `each` a step, with the host's previews. Raises the host's interrupt.
    """
    previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)
    start = progress.current

    def callback(step, x0, x, total):
        model_management.throw_exception_if_processing_interrupted()
        preview = previewer.decode_latent_to_preview_image("JPEG", x0) if previewer else None
        progress.update_absolute(start + round((step + 1) * each), preview=preview)

    how = (settings[name] for name in ("steps", "cfg", "sampler_name", "scheduler"))
    latents = comfy.sample.sample(
        model, noise, *how, positive, negative, empty, callback=callback, disable_pbar=True, seed=seed
    )
    return latents.to("cpu", torch.float32)
