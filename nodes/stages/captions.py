"""How many captions are read where nobody says: fewer on a CPU that would take long; and how long it will take."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from comfy import model_management

from ...mace.concepts.captions import builtin_captions
from ...mace.pipeline.batches import BATCH
from ...mace.pipeline.prior import CaptionSource, captions_to_read, draw_captions, literal
from ...mace.pipeline.store import LastResult
from ..host.port_text import PortText
from ..host.progress import duration, send_text
from ..host.text import TextEncoder

# Captions, where nobody says how many.
USUAL = 4000
# Seconds that a CPU may read so many; else it reads half of them, and so on, down to FEWEST.
LONGEST, FEWEST = 600, 250
# Prompts that are timed on a CPU, after one that loads the text encoder.
PROMPTS = 4
SHOWN_FROM = 1.0

# Seconds a prompt, and those of the processor.
_measured = LastResult()


@dataclass(frozen=True)
class Reading:
    """Captions to read. source: where from.  count: how many, 0 where their sum is kept from before.  seconds: that it
    will take.  lines: for the artist, where they are fewer than usual.  kept: prompts of what is to be preserved."""

    source: CaptionSource
    count: int
    seconds: float
    lines: Sequence[str] = ()
    kept: int = 0

    def say(self) -> None:
        """What is being done, on the running node, and how long it will take."""
        parts = [f"{self.count} captions"] if self.count else []
        parts += [f"{self.kept} prompts of what is kept"] if self.kept else []
        words = f"reading {' and '.join(parts) or 'prompts'}"
        send_text(f"{words}, about {duration(self.seconds)}" if self.seconds >= SHOWN_FROM else words)


def seconds_a_prompt(text: TextEncoder | PortText, clip) -> tuple[float, float]:
    """What a prompt takes on the device of a CLIP: as it is now, and on a CPU if nothing else ran on it.

    text: of this CLIP. Kept for the loaded text encoder, which this loads.
    """
    device = clip.patcher.load_device
    key = (text.identity, device)
    known = _measured.get(text.module, key)
    if known is not None:
        return known
    # Elsewhere so few at once take as long as a batch.
    few = PROMPTS if model_management.is_device_cpu(device) else BATCH
    first, *prompts = map(literal, builtin_captions(few + 1))
    text.read([first])
    start, used = time.perf_counter(), time.process_time()
    text.read(prompts)
    seconds = (time.perf_counter() - start) / few
    found = (seconds, min(seconds, (time.process_time() - used) / few / torch.get_num_threads()))
    _measured.put(text.module, key, found)
    return found


def measured(text: TextEncoder | PortText, clip, source: CaptionSource) -> Reading:
    """All captions of a source, as they were asked for, and how long they will take. Raises as `draw_captions` does."""
    count = captions_to_read(text, source)
    if count and source.path is not None:
        count = len(draw_captions(source))
    # Few are read before they are timed.
    return Reading(source, count, count * seconds_a_prompt(text, clip)[0] if count > BATCH else 0.0)


def with_kept(reading: Reading, text: TextEncoder | PortText, clip, prompts: int) -> Reading:
    """A reading, and that of so many prompts of what is to be preserved."""
    seconds = prompts * seconds_a_prompt(text, clip)[0] if prompts > BATCH else 0.0
    return replace(reading, seconds=reading.seconds + seconds, kept=prompts)


def in_time(text: TextEncoder | PortText, clip, source: CaptionSource) -> Reading:
    """The captions of a source for which nobody said how many: fewer where a CPU would take longer than LONGEST.

    A moment is scaled to one number of captions whatever their count, so that weights mean the same.
    """
    whole = measured(text, clip, source)
    if not whole.seconds or not model_management.is_device_cpu(clip.patcher.load_device):
        return whole
    # By the processor's time, which other programs hardly change: a machine is to read the same captions every time.
    count, each = whole.count, seconds_a_prompt(text, clip)[1]
    while count // 2 >= FEWEST and count * each > LONGEST:
        count //= 2
    if count == whole.count:
        return whole
    fewer = measured(text, clip, replace(source, count=count))
    line = f"{count} captions in place of {whole.count}, which would take this CPU about {duration(whole.seconds)}"
    return replace(fewer, lines=(f"{line}; a Prior with a count of your own reads as many as you say",))
