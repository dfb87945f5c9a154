"""How long an erasure will take, said before it starts: of what one prompt and one prediction take here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import comfy.sample
import torch
from comfy import model_management
from torch import Tensor

from ...mace.pipeline.store import LastResult
from ..host.any_text import text_to_draw_with
from ..host.gallery import Prompts
from ..host.model.family import sized
from ..host.model.memory import measure, suppress_out_of_memory
from ..host.model.predict import noisy, predict_given
from ..host.networks import Batches
from ..host.port_text import PortText
from ..host.progress import duration, send_text, size
from ..host.text import TextEncoder
from .captions import SHOWN_FROM, seconds_a_prompt

TIMESTEP = 500
# Pictures whose prediction is timed, fewer where memory runs out.
ROWS = 2
# A prediction and its gradient take about as long as so many predictions.
TRAINED = 3

# What was measured.
_measured = LastResult()


@dataclass(frozen=True)
class Speed:
    """text: seconds a prompt.  row: seconds of one prediction for one picture.  memory: bytes that this takes beside
    the model. Both 0 where they are not measured."""

    text: float
    row: float = 0.0
    memory: int = 0


@dataclass(frozen=True)
class Estimate:
    """seconds: by part of the work, in order.  lines: for the artist, the whole first.  plans: see `planning.planned`;
    none where no LoRA is trained."""

    seconds: Mapping[str, float]
    lines: Sequence[str]
    plans: Sequence[str] = ()

    def say(self, part: str, words: str) -> None:
        """What is being done, on the running node, and what is left from this part of the work on."""
        names = list(self.seconds)
        left = sum(list(self.seconds.values())[names.index(part) :]) if part in names else 0.0
        send_text(f"{words}, about {duration(left)} left" if left >= SHOWN_FROM else words)


def measure_speed(model, clip, text: TextEncoder | PortText, prompts: Sequence[str], width: int, height: int) -> Speed:
    """What a prompt and a prediction take on this device, no prediction where none fits. Kept for the loaded model.

    text: of this CLIP.  prompts: that pictures may have; none where nothing is drawn, and the model is not loaded.
    width, height: of the pictures in pixels, 0 for the model's own.
    """
    seconds, _ = seconds_a_prompt(text, clip)
    if not prompts:
        return Speed(seconds)
    width, height = sized(model, width, height)
    key = (text.identity, width, height, model.load_device, model.patches_uuid)
    known = _measured.get(model.model, key)
    if known is not None:
        return known
    given = Prompts(text_to_draw_with(clip, model))
    drawn = list(prompts[:ROWS]) if given.fit_together(prompts[:ROWS]) else [prompts[0]]
    device = model.load_device

    def timed(rows: Tensor) -> list[Speed]:
        shape = (len(rows), 4, height // 8, width // 8)
        empty = comfy.sample.fix_empty_latent_channels(model, torch.zeros(shape), 8)
        model_management.load_models_gpu([model], memory_required=model.memory_required(list(empty.shape)))
        noise = torch.randn(empty.shape, generator=torch.Generator().manual_seed(0)).to(device)
        x, sigmas = noisy(model, empty.to(device), noise, [TIMESTEP] * len(rows))
        found = measure(device, lambda: predict_given(model, x, sigmas, given.conditioning(drawn[: len(rows)])))
        return [Speed(seconds, found.seconds / len(rows), found.memory // len(rows))] * len(rows)

    with suppress_out_of_memory():
        *_, speed = Batches(len(drawn)).run(torch.arange(len(drawn)), timed)
        _measured.put(model.model, key, speed)
        return speed
    return Speed(seconds)


def estimated(speed: Speed, parts: Mapping[str, tuple[int, int]], model, clip, at_once: int, trains: bool) -> Estimate:
    """The time of parts of the work, each (prompts, predictions), and the memory.

    at_once: pictures in one batch, each with a prediction for its prompt and one for the negative prompt.  trains:
    whether any of it is a training.
    """
    seconds = {name: prompts * speed.text + rows * speed.row for name, (prompts, rows) in parts.items()}
    of_each = [f"{name} {duration(own)}" for name, own in seconds.items() if own >= SHOWN_FROM]
    total = sum(seconds.values())
    device = "memory" if model_management.is_device_cpu(model.load_device) else "the GPU's memory"
    own, text = model.model_size(), clip.patcher.model_size()
    memory = f"{device}: model and text encoder {size(own + text)}"
    if speed.memory:
        memory += f", {size(2 * at_once * speed.memory)} to draw {at_once} pictures at once"
    if trains:
        memory += f"; a copy of the model, {size(own)}, while training"
    told = [f"about {duration(total)}" + (f": {', '.join(of_each)}" if of_each else ""), memory]
    unknown = [name for name, (_, rows) in parts.items() if rows and not speed.row]
    if unknown:
        told.append(
            f"the model's predictions for {', '.join(unknown)} are not in this time: memory ran out at a single picture"
        )
    return Estimate(seconds, told)
