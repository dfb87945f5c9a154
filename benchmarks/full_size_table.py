"""The table of benchmarks/full_size.py: the peak memory of a stage, and a line for each."""

import gc
import threading
from pathlib import Path

from benchmarks.measure import can_measure_memory, resident
from devtools.simulated_device import find_device, statistics_of

DEVICE = find_device()
statistics = statistics_of(DEVICE)
COLUMNS = {"peak": "peak_bytes", "extra": "extra_bytes", "device": "device_bytes"}


class Peak:
    """Peak memory inside a with block, in bytes, as benchmarks/full_size.py says it. ballast: not to be counted."""

    def __init__(self, ballast=0):
        self.ballast = ballast

    def __enter__(self):
        gc.collect()
        self.found, self._stop, self._device = {}, threading.Event(), 0
        if DEVICE:
            statistics.synchronize()
            statistics.empty_cache()
            statistics.reset_peak_memory_stats()
            self._before = statistics.memory_allocated()
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        elif can_measure_memory():
            Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
            self._before = resident("VmRSS")
        return self

    def _watch(self):
        while not self._stop.is_set():
            free, total = statistics.mem_get_info()
            self._device = max(self._device, total - free)
            self._stop.wait(0.01)

    def __exit__(self, *_):
        if DEVICE:
            statistics.synchronize()
            self._stop.set()
            self._thread.join()
            peak = statistics.max_memory_allocated()
            self.found = {"peak_bytes": peak - self.ballast, "extra_bytes": peak - self._before}
            self.found["device_bytes"] = self._device - self.ballast
        elif can_measure_memory():
            peak = resident("VmHWM")
            self.found = {"peak_bytes": peak, "extra_bytes": peak - self._before}


def line(row):
    """A row of the table."""
    size = "".join(f"{row[name] / 1e9:9.2f}" if name in row else f"{'-':>9}" for name in COLUMNS.values())
    hidden = {"stage", "seconds", "error", "trace", "said", *COLUMNS.values()}
    facts = {name: value for name, value in row.items() if name not in hidden}
    told = ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in facts.items()
    )
    seconds = f"{row['seconds']:9.2f}" if "seconds" in row else f"{'-':>9}"
    more = "".join(f"\n      {text}" for text in (*row.get("said", ()), *([row["error"]] if "error" in row else ())))
    return f"{row['stage']:24}{seconds}{size}  {told}{more}"
