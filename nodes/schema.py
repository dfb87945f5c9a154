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
# Of a node that is not told a preset of its own.
OF_CONCEPTS = "that of the concepts"
MOST_WEIGHT = 1e9
MOST_RATE = 1.0
# Pictures in a preview.
SHOWN = 64
# Of pictures, in pixels.
MOST_SIDE, AUTO_SIZE = 4096, 0


def side_inputs(what: str) -> list[io.Int.Input]:
    """Width and height of pictures. what: whose, as it stands in the tooltip."""
    return [
        io.Int.Input(
            side,
            default=AUTO_SIZE,
            min=0,
            max=MOST_SIDE,
            step=8,
            advanced=True,
            tooltip=f"{side.capitalize()} of {what} in pixels. 0: what the model was made for (512 for SD1.x, 768 for "
            "SD2.x with v-prediction, 1024 for SDXL).",
        )
        for side in ("width", "height")
    ]


def number_input(name: str, tooltip: str, default: str = AUTO, whole: bool = False, **given) -> io.MultiType.Input:
    """A number, or auto, as text; nodes that give numbers can be linked to it.

    Its widget stays a text, which workflows hold as such: a number widget could not hold auto.
    """
    written = io.String.Input(name, default=default, tooltip=tooltip, **given)
    return io.MultiType.Input(written, [io.Int] if whole else [io.Float, io.Int])


def is_auto(given: str | float | None) -> bool:
    """Whether a number is left to the node: auto, an empty text, or what is linked and not there yet."""
    return given is None or isinstance(given, str) and given.strip().lower() in (AUTO, "")


def read_weight(name: str, given: str | float | None) -> float | None:
    """A weight of the objective, written or linked: None for auto, else a number in 0..MOST_WEIGHT.

    Raises ValueError.
    """
    if is_auto(given):
        return None
    value = _number(given)
    if not 0 <= value <= MOST_WEIGHT:
        raise ValueError(f"{name}: {given!r} is neither auto nor a number from 0 to {MOST_WEIGHT:g}, such as 1e-4")
    return value


def _number(given: str | float) -> float:
    """A number, NaN where it is none."""
    try:
        return math.nan if isinstance(given, bool) else float(given)
    except (ValueError, TypeError):
        return math.nan


def read_weights(*rows: tuple[str, str | float, float]) -> tuple[list[float], list[str]]:
    """Weights of (name, as given, usual value), the usual one for auto; and a line on each for the artist."""
    values, lines = [], []
    for name, written, usual in rows:
        given = read_weight(name, written)
        values.append(usual if given is None else given)
        lines.append(f"{name} {values[-1]:g}" + (" (auto)" if given is None else ""))
    return values, lines


def read_number(name: str, given: str | float | None, most: float, whole: bool = False) -> float | int | None:
    """A setting of training, written or linked: None for auto, else a number above 0 and up to `most`.

    Raises ValueError.
    """
    if is_auto(given):
        return None
    value = _number(given)
    if not 0 < value <= most or whole and value != int(value):
        kind = "a whole number from 1" if whole else "a number above 0 and up"
        raise ValueError(f"{name}: {given!r} is neither auto nor {kind} to {most:g}")
    return int(value) if whole else value
