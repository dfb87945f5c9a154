"""Presets: those of the pack, and files in models/mace_presets and output/mace_presets."""

import functools
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path

from ...mace.method.fuse import FuseWeights
from ...mace.method.refine import RefineWeights
from ...mace.pipeline.written import AUTO, is_auto
from ...mace.presets.presets import PAPER, PRESETS, Preset, read_preset
from .files import PRESET_FILES, path_stamp
from .folders import file_names, pass_over, path_of

# A preset is some lines of text.
MOST_BYTES = 1 << 20


@functools.lru_cache(256)
def _read(path: str, size: int, time: int) -> tuple[str, Preset]:
    """(name, preset) of a file as it is now. Raises ValueError, and OSError where it went."""
    if size > MOST_BYTES:
        raise ValueError(f"it has {size} bytes, and a preset at most {MOST_BYTES}")
    return read_preset(Path(path))


def presets() -> dict[str, Preset]:
    """Every preset by name, the pack's own first, then those of files. Odd files are passed over, with a log line."""
    return {**PRESETS, **{name: preset for name, (preset, _) in preset_files().items()}}


def preset_files() -> dict[str, tuple[Preset, str]]:
    """(preset, path of its file) by name, of all that can be read and have a name of their own."""
    found: dict[str, tuple[Preset, str]] = {}
    for file in file_names(PRESET_FILES):
        try:
            path, *stamp = path_stamp(path_of(PRESET_FILES, file) or file)
            name, preset = _read(path, *stamp)
            if name in PRESETS or name in found:
                raise ValueError(f"there is a preset {name!r} already: give it another name")
        except (OSError, ValueError) as error:
            pass_over(f"the preset {file!r}", error)
            continue
        found[name] = preset, path
    return found


def find_preset(name: str) -> Preset:
    """A preset by its name; the paper's for "". Raises ValueError where it is gone."""
    found = presets().get(name or PAPER)
    if found is None:
        raise ValueError(
            f"there is no preset {name!r} here: put its file into models/{PRESET_FILES}, or write numbers in place of "
            f"{AUTO}"
        )
    return found


def preset_stamp(name: str | None) -> tuple | None:
    """What changes when a preset does: all that its file holds; None for the pack's own."""
    if name in PRESETS or not isinstance(name, str):
        return None
    return tuple(path_stamp(path_of(PRESET_FILES, file)) for file in file_names(PRESET_FILES))


def weights_in_place_of_auto(
    texts: Sequence[str | float], usual: RefineWeights | FuseWeights | Sequence[str] | None
) -> tuple[str | float, ...]:
    """Three weights as given, a preset's in place of auto; as they are where the preset has none.

    usual: the preset's weights, or how they are written.
    """
    if usual is None:
        return tuple(texts)
    written = map(repr, astuple(usual)[:3]) if isinstance(usual, RefineWeights | FuseWeights) else usual
    return tuple(own if is_auto(text) else text for text, own in zip(texts, written, strict=True))
