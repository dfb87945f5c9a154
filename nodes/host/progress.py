"""What an artist sees while erasure LoRAs train: concept, step and loss in words, and the losses as curves."""

import time
from collections.abc import Callable, Sequence

import torch
from comfy.utils import ProgressBar
from comfy_execution.utils import get_executing_context
from PIL import Image, ImageDraw
from server import PromptServer
from torch import Tensor

EVERY_SECONDS = 0.5
WIDTH, HEIGHT, MARGIN = 360, 200, 24
PAPER, FRAME = (250, 250, 250), (170, 170, 170)
INKS = ((31, 119, 180), (214, 39, 40), (44, 160, 44), (148, 103, 189), (255, 127, 14), (23, 190, 207))
NAMED = 6


def loss_curves(names: list[str], history: Tensor, steps: int) -> Image.Image:
    """The losses [steps so far, C] of concepts trained side by side, each relative to its own first.

    steps: how many there will be. The vertical axis runs from 0 to the largest value so far.
    """
    picture = Image.new("RGB", (WIDTH, HEIGHT), PAPER)
    draw = ImageDraw.Draw(picture)
    left, top, right, bottom = MARGIN, MARGIN, WIDTH - MARGIN // 2, HEIGHT - MARGIN // 2
    draw.rectangle((left, top, right, bottom), outline=FRAME)
    relative = history / history[:1].clamp_min(1e-12)
    highest = max(float(relative.max()), 1e-12)
    for place in range(relative.shape[1]):
        points = [
            (left + (right - left) * step / max(steps - 1, 1), bottom - (bottom - top) * float(value) / highest)
            for step, value in enumerate(relative[:, place])
        ]
        ink = INKS[place % len(INKS)]
        draw.line(points if len(points) > 1 else points * 2, fill=ink, width=2)
    x = left
    for place, name in enumerate(names[:NAMED]):
        draw.text((x, 6), name, fill=INKS[place % len(INKS)])
        x += draw.textlength(name) + 10
    return picture


class NodeProgress:
    """Bars on the running node. See `mace.pipeline.host.Progress`."""

    def begin(self, total: int) -> Callable[[int], None]:
        """A new bar, and what advances it."""
        return ProgressBar(total).update


class LossProgress:
    """Progress of a training node over all its concepts. total: steps of all groups times their concepts."""

    def __init__(self, total: int):
        self.bar = ProgressBar(total)
        self._names: list[str] = []
        self._history: list[Tensor] = []
        self._sent = 0.0

    def skip(self, steps: int) -> None:
        """Count the steps of concepts that need no training."""
        self.bar.update(steps)

    def report(self, names: list[str], step: int, losses: Tensor, steps: int) -> None:
        """One step of concepts side by side: their losses [C] in step 1..steps."""
        # A training that goes on from where it was stopped has no step 1.
        if step == 1 or names != self._names:
            self._names, self._history = names, []
        self._history.append(losses)
        now = time.monotonic()
        preview = None
        if now - self._sent >= EVERY_SECONDS or step in (1, steps):
            self._sent = now
            preview = ("JPEG", loss_curves(names, torch.stack(self._history), steps), None)
            send_text(f"{listed(names)}: step {step} of {steps}, loss {float(losses.mean()):.4g}")
        self.bar.update_absolute(self.bar.current + len(names), preview=preview)


def duration(seconds: float) -> str:
    """A time in words, rounded as an estimate is read."""
    if seconds < 90:
        return f"{max(round(seconds), 1)} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def size(count: float) -> str:
    """Bytes in words."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.0f} MB"


def listed(names: Sequence[str]) -> str:
    """The first three names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} others" if len(names) > 3 else "")


# Called with the same words, by a program that has no page.
listeners: list[Callable[[str], None]] = []


def send_text(text: str) -> None:
    """Words on the running node, where there is a server and a node."""
    for listener in listeners:
        listener(text)
    context = get_executing_context()
    server = getattr(PromptServer, "instance", None)
    if context is not None and server is not None:
        server.send_progress_text(text, context.node_id)
