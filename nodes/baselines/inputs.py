"""Inputs and outputs that the baselines' nodes share, and reading them."""

from comfy_api.latest import io

from ...mace.pipeline.written import MOST_RATE, read_number
from ..schema import number_input

MOST_STEPS = 100_000
OTHER_DRAWS = "Another seed trains on other draws."


def steps_input(published: int, note: str) -> io.Int.Input:
    """Steps of the optimizer."""
    return io.Int.Input(
        "steps",
        default=published,
        min=1,
        max=MOST_STEPS,
        tooltip=f"More erase more and take longer. Training steps over all concepts together, each with one drawn "
        f"concept. Published: {note}.",
    )


def rate_input(published: float, note: str) -> io.MultiType.Input:
    """The learning rate, as text for its many decimals."""
    return number_input(
        "learning_rate",
        usual=published,
        tooltip="Higher erases more in as many steps, and breaks more. Learning rate, above 0 and up to 1. auto: the "
        f"published {published:g} ({note}), which is for Stable Diffusion 1.x; a small model needs more.",
    )


def outputs(what: str) -> list:
    """The MODEL and the losses."""
    return [
        io.Model.Output("model", tooltip=f"The erased model: the input with patches on {what}."),
        io.Custom("LOSS_MAP").Output("losses", tooltip="The loss of every step, for Plot Loss Graph."),
    ]


def rate_of(text: str | float | None, published: float) -> float:
    """The learning rate an artist wrote. Raises ValueError."""
    return read_number("learning_rate", text, MOST_RATE) or published


def checked_rate(text: str | float | None, published: float) -> bool | str:
    """What validate_inputs answers to a learning rate: True, or what is wrong. text: None while linked."""
    try:
        rate_of(text, published)
    except ValueError as error:
        return str(error)
    return True
