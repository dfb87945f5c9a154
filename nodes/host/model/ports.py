"""The text ports of a MODEL: known for the families that are, else found by running it (see mace.method.ports)."""

import re
from collections.abc import Sequence

import torch
from comfy import model_management
from comfy.model_patcher import create_model_options_clone
from comfy.utils import pack_latents
from torch import Tensor

from ....mace.method.ports import TextPorts, find_ports
from .port_table import KNOWN
from .predict import call

# Sides of the latents that a model is run with: the first that its positions and patches allow.
SIDES = (16, 48)
SHARES = (0.3, 0.6)


class SmallRuns:
    """A loaded MODEL's forward on small latents.

    shapes: of the latents, several where a model draws several at once (pictures and sound), the model's own with
    `side` where none is given.
    """

    def __init__(self, model, side: int, shapes: Sequence[Sequence[int]] | None = None):
        self.model = model
        self._shapes = [(1, *shape) for shape in shapes or [latent_shape(model, side)]]
        sampling = model.get_model_object("model_sampling")
        self._sigmas = [float(sampling.percent_to_sigma(share)) for share in SHARES]

    def run(self, conditioning: list, latent: int = 0) -> Tensor:
        """What the model predicts for the host's CONDITIONING of one prompt, on one of two latents."""
        device = self.model.load_device
        generator = torch.Generator().manual_seed(latent)
        parts = [torch.randn(shape, generator=generator).to(device) for shape in self._shapes]
        more = {}
        if len(parts) > 1:
            x, more["latent_shapes"] = pack_latents(parts)
        else:
            x = parts[0]
        options = create_model_options_clone(self.model.model_options)
        schedule = torch.tensor([*self._sigmas, 0.0], dtype=torch.float32, device=device)
        # Models that were distilled for few steps look there for where the next one stands.
        options.setdefault("transformer_options", {})["sample_sigmas"] = schedule
        sigmas = schedule[latent : latent + 1]
        # Some models write into what they are given.
        given = [[_copied(value) for value in entry] for entry in conditioning]
        with torch.inference_mode():
            return call(self.model, x, sigmas, given, options, seed=0, **more)


class PromptRuns(SmallRuns):
    """The runs of one prompt's CONDITIONING and of another one of the same length. See mace.method.ports.Run."""

    def __init__(self, model, conditioning: list, side: int, shapes: Sequence[Sequence[int]] | None = None):
        super().__init__(model, side, shapes)
        self._prompts = conditioning, altered(conditioning)

    def __call__(self, text: int, latent: int) -> Tensor:
        return self.run(self._prompts[text], latent)


def latent_shape(model, side: int) -> tuple[int, ...]:
    """The shape of one latent of a MODEL without its batch, one frame where it draws films."""
    form = model.model.latent_format
    return (form.latent_channels, *[1] * (form.latent_dimensions - 2), side, side)


def altered(conditioning: list) -> list:
    """CONDITIONING of another prompt with as many tokens: noise on all its numbers, other places for its token ids."""
    generator = torch.Generator().manual_seed(1)

    def other(name: str, value):
        # Which tokens there are, and how much each counts, is the same for both.
        if not isinstance(value, Tensor) or "mask" in name or "weight" in name:
            return value
        if value.is_floating_point():
            noise = torch.randn(value.shape, generator=generator).to(value.device)
            return (value.float() + noise * (value.float().std(unbiased=False) + 1e-2)).to(value.dtype)
        return value.roll(1, -1)

    return [
        [other("", tokens), {name: other(name, value) for name, value in more.items()}] for tokens, more in conditioning
    ]


def known_ports(model) -> tuple[tuple[str, ...], ...] | None:
    """The ports of a MODEL of a known family, by what they read; None for another."""
    # What is no diffusion model has no configuration.
    patterns = KNOWN.get(type(getattr(model.model, "model_config", None)).__name__)
    if patterns is None:
        return None
    names = [key.removesuffix(".weight") for key in model.model.diffusion_model.state_dict() if key.endswith(".weight")]
    groups = (tuple(name for name in names if re.search(pattern, name)) for pattern in patterns)
    return tuple(group for group in groups if group)


def ports_by_running(model, conditioning: list, shapes: Sequence[Sequence[int]] | None = None) -> TextPorts | None:
    """The text ports of a MODEL, found by running it with the CONDITIONING of a prompt; None where it has none.

    Raises what the model raises where it runs at no size.
    """
    side = running_side(model, conditioning, shapes)
    return find_ports(PromptRuns(model, conditioning, side, shapes), model.model.diffusion_model)


def running_side(model, conditioning: list, shapes: Sequence[Sequence[int]] | None = None) -> int:
    """The first of SIDES that a MODEL runs at. Raises what it raises at the first where it runs at none."""
    model_management.load_models_gpu([model])
    raised = []
    for side in SIDES:
        try:
            SmallRuns(model, side, shapes).run(conditioning)
        except Exception as error:
            # PixArt divides by zero below a size, others cannot patch one.
            raised.append(error)
        else:
            return side
    raise raised[0]


def _copied(value):
    if isinstance(value, Tensor):
        return value.clone()
    return {name: _copied(own) for name, own in value.items()} if isinstance(value, dict) else value
