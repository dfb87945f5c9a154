"""The size of pictures: what the artist sets, or what the model was made for."""

from comfy_api.latest import io

from .family import native_side

LEAST, MOST = 64, 4096
AUTO_SIZE = 0


def side_inputs(what: str) -> list[io.Int.Input]:
    """Width and height of pictures. what: whose, as it stands in the tooltip."""
    return [
        io.Int.Input(
            side,
            default=AUTO_SIZE,
            min=0,
            max=MOST,
            step=8,
            tooltip=f"{side.capitalize()} of {what} in pixels. 0: what the model was made for (512 for SD1.x, 768 for "
            "SD2.x with v-prediction, 1024 for SDXL).",
        )
        for side in ("width", "height")
    ]


def sized(model, width: int, height: int) -> tuple[int, int]:
    """(width, height) in pixels, with what the model was made for in place of 0. Raises ValueError below LEAST."""
    found = tuple(side or native_side(model) for side in (width, height))
    if min(found) < LEAST:
        raise ValueError(f"pictures of {found[0]}x{found[1]} are too small: width and height are 0 or from {LEAST}")
    return found
