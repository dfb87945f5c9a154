"""How long an erasure will take, said before it starts: of what one prompt and one prediction take here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import comfy.sample
import torch
from comfy import model_management

from ...mace.concepts.concept import Concept
from ...mace.method.tokens import fill
from ...mace.pipeline.store import LastResult
from ..host.model.family import sized
from ..host.model.memory import measure
from ..host.model.predict import noisy, predict
from ..host.progress import duration, send_text, size
from ..host.text import TextEncoder
from .captions import SHOWN_FROM, seconds_a_prompt

TIMESTEP = 500
# Pictures whose prediction is timed.
ROWS = 2
# A prediction and its gradient take about as long as so many predictions.
TRAINED = 3

# What was measured.
_measured = LastResult()


@dataclass(frozen=True)
class Speed:
    """text: seconds a prompt.  row: seconds of one prediction for one picture.  memory: bytes that this takes beside
    the model."""

    text: float
    row: float
    memory: int


@dataclass(frozen=True)
class Estimate:
    """seconds: by part of the work, in order.  lines: for the artist, the whole first."""

    seconds: Mapping[str, float]
    lines: Sequence[str]

    def say(self, part: str, words: str) -> None:
        """What is being done, on the running node, and what is left from this part of the work on."""
        names = list(self.seconds)
        left = sum(list(self.seconds.values())[names.index(part) :]) if part in names else 0.0
        send_text(f"{words}, about {duration(left)} left" if left >= SHOWN_FROM else words)


def measure_speed(model, clip, concept: Concept, width: int, height: int) -> Speed:
    """What a prompt of the concept and a prediction take on this device. Kept for the loaded model.

    width, height: of the pictures in pixels, 0 for the model's own. Loads text encoder and model.
    """
    width, height = sized(model, width, height)
    encoder = TextEncoder(clip)
    key = (encoder.identity, width, height, model.load_device, model.patches_uuid)
    known = _measured.get(model.model, key)
    if known is not None:
        return known
    text, _ = seconds_a_prompt(encoder, clip)
    contexts, pooled = encoder.encode_pooled([fill(template, concept.target) for template in concept.prompts[:ROWS]])
    device = model.load_device
    contexts = contexts.to(device)
    pooled = pooled.to(device) if encoder.has_pooled(model) else None
    empty = comfy.sample.fix_empty_latent_channels(model, torch.zeros(len(contexts), 4, height // 8, width // 8), 8)
    model_management.load_models_gpu([model], memory_required=model.memory_required(list(empty.shape)))
    noise = torch.randn(empty.shape, generator=torch.Generator().manual_seed(0)).to(device)
    x, sigmas = noisy(model, empty.to(device), noise, [TIMESTEP] * len(contexts))
    found = measure(device, lambda: predict(model, x, sigmas, contexts, pooled))
    speed = Speed(text, found.seconds / len(contexts), found.memory // len(contexts))
    _measured.put(model.model, key, speed)
    return speed


def estimated(speed: Speed, parts: Mapping[str, tuple[int, int]], model, clip, at_once: int) -> Estimate:
    """The time of parts of the work, each (prompts, predictions), and the memory.

    at_once: pictures in one batch, each with a prediction for its prompt and one for the negative prompt.
    """
    seconds = {name: prompts * speed.text + rows * speed.row for name, (prompts, rows) in parts.items()}
    of_each = [f"{name} {duration(own)}" for name, own in seconds.items() if own >= SHOWN_FROM]
    total = sum(seconds.values())
    device = "memory" if model_management.is_device_cpu(model.load_device) else "the GPU's memory"
    own, text = model.model_size(), clip.patcher.model_size()
    return Estimate(
        seconds,
        (
            f"about {duration(total)}" + (f": {', '.join(of_each)}" if len(of_each) > 1 else ""),
            f"{device}: model and text encoder {size(own + text)}, {size(2 * at_once * speed.memory)} to draw "
            f"{at_once} pictures at once; a copy of the model, {size(own)}, while training",
        ),
    )
