"""What several nodes have alike: sockets, menu, inputs, and how numbers written as text are read."""

import math

from comfy_api.latest import io

# tuple[mace.concepts.concept.Concept, ...]
ConceptsType = io.Custom("MACE_CONCEPTS")
# mace.method.prior.Prior
PriorType = io.Custom("MACE_PRIOR")
# mace.method.refine.Refinement
RefinementType = io.Custom("MACE_REFINEMENT")
# tuple[mace.concepts.images.ConceptImages, ...]
ImagesType = io.Custom("MACE_IMAGES")
# mace.formats.lora_set.LoraSet
LorasType = io.Custom("MACE_LORAS")

# The menu: what erases, what is written and read, what tells of a result, and published methods to compare with.
ERASE, FILES, MEASURE, COMPARE = (f"MACE/{name}" for name in ("erase", "files", "measure", "compare"))

AUTO = "auto"
MOST_WEIGHT = 1e9
MOST_RATE = 1.0
# Pictures in a preview.
SHOWN = 64
# Of pictures, in pixels.
MOST_SIDE, AUTO_SIZE = 4096, 0


def side_inputs(what: str, **more) -> list[io.Int.Input]:
    """Width and height of pictures. what: whose, as it stands in the tooltip.  more: of both inputs."""
    return [
        io.Int.Input(
            side,
            default=AUTO_SIZE,
            min=0,
            max=MOST_SIDE,
            step=8,
            tooltip=f"{side.capitalize()} of {what} in pixels. 0: what the model was made for (512 for SD1.x, 768 for "
            "SD2.x with v-prediction, 1024 for SDXL).",
            **more,
        )
        for side in ("width", "height")
    ]


def read_weight(name: str, text: str) -> float | None:
    """A weight of the objective: None for auto, else a number in 0..MOST_WEIGHT. Raises ValueError."""
    if text.strip().lower() in (AUTO, ""):
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= MOST_WEIGHT:
        raise ValueError(f"{name}: {text!r} is neither auto nor a number from 0 to {MOST_WEIGHT:g}, such as 1e-4")
    return value


def read_weights(*rows: tuple[str, str, float]) -> tuple[list[float], list[str]]:
    """Weights of (name, text, usual value), the usual one for auto; and a line on each for the artist."""
    values, lines = [], []
    for name, text, usual in rows:
        given = read_weight(name, text)
        values.append(usual if given is None else given)
        lines.append(f"{name} {values[-1]:g}" + (" (auto)" if given is None else ""))
    return values, lines


def read_number(name: str, text: str, most: float, whole: bool = False) -> float | int | None:
    """A setting of training: None for auto, else a number above 0 and up to `most`. Raises ValueError."""
    if text.strip().lower() in (AUTO, ""):
        return None
    try:
        value = int(text) if whole else float(text)
    except ValueError:
        value = 0
    if not 0 < value <= most:
        kind = "a whole number from 1" if whole else "a number above 0 and up"
        raise ValueError(f"{name}: {text!r} is neither auto nor {kind} to {most:g}")
    return value
