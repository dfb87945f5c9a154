"""Before and after: the same prompt and noise, drawn by a model as it was and as it is."""

from collections.abc import Sequence

import torch
from comfy.utils import ProgressBar
from torch import Tensor

from ..host.any_text import text_to_draw_with
from ..host.gallery import Gallery, Prompts
from ..host.model.family import sized


def before_and_after(
    base, erased, clip, vae, prompt: str, seeds: Sequence[int], settings: dict
) -> tuple[Tensor, Tensor]:
    """Pictures [n, H, W, 3] in 0..1 of one prompt by two MODELs, one for each seed of the noise.

    settings: width and height in pixels (0: the model's own), steps, cfg, sampler_name, scheduler. What a model drew
    before is kept by content: the base is drawn once. Raises ValueError for a prompt that is too long.
    """
    encoder = text_to_draw_with(clip, base)
    encoder.check_length(prompt)
    width, height = sized(base, settings["width"], settings["height"])
    settings = {**settings, "width": width, "height": height}
    progress = ProgressBar(2 * len(seeds) * settings["steps"])
    prompts, asked = Prompts(encoder), [(prompt, seed) for seed in seeds]
    before, after = (
        torch.stack(Gallery(model, prompts, vae, None, settings, len(seeds), progress, title).draw(asked)).float() / 255
        for model, title in ((base, "base model"), (erased, "erased model"))
    )
    return before, after
