"""What several nodes have alike: sockets, menu and inputs."""

from comfy_api.latest import io

from ..mace.pipeline.written import AUTO

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

# Of a node that is not told a preset of its own.
OF_CONCEPTS = "that of the concepts"
# Pictures in a preview.
SHOWN = 64
# Of pictures, in pixels.
MOST_SIDE, AUTO_SIZE = 4096, 0
MOST_SEED = 2**63 - 1


def side_inputs(what: str, **more) -> list[io.Int.Input]:
    """Width and height of pictures. what: whose, as it stands in the tooltip.  more: of both inputs."""
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
            **more,
        )
        for side in ("width", "height")
    ]


def seed_input(tooltip: str, most: int = MOST_SEED, **more) -> io.Int.Input:
    """A seed that stays as it is after a run. most: the largest that what draws by it takes."""
    return io.Int.Input("seed", default=0, min=0, max=most, control_after_generate=False, tooltip=tooltip, **more)


def sampling_inputs(steps: str, cfg: str) -> list[io.Int.Input | io.Float.Input]:
    """Steps and guidance scale of a sampler, advanced, with their tooltips."""
    return [
        io.Int.Input("steps", advanced=True, default=20, min=1, max=200, tooltip=steps),
        io.Float.Input("cfg", advanced=True, default=7.0, min=0.0, max=30.0, step=0.5, tooltip=cfg),
    ]


def number_input(
    name: str, tooltip: str, usual: float, default: str = AUTO, whole: bool = False, **given
) -> io.MultiType.Input:
    """A number, or auto, as text; nodes that give numbers can be linked to it, and the page lets it be dragged.

    Its widget stays a text, which workflows hold as such: a number widget could not hold auto.  usual: where a drag
    begins while it is auto.
    """
    dragged = {"mace_number": {"usual": usual, "whole": whole}}
    written = io.String.Input(name, default=default, tooltip=tooltip, extra_dict=dragged, **given)
    return io.MultiType.Input(written, [io.Int] if whole else [io.Float, io.Int])
