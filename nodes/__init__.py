"""The pack's nodes. Only this package knows ComfyUI; the numerics are in `mace`."""

from comfy_api.latest import ComfyExtension, io

from . import files
from .concepts import Concepts
from .load_prior import LoadPrior
from .prior import BuildPrior
from .refine import CFRRefine
from .residual import ResidualPrompt
from .save_model import SaveErasedModel
from .save_prior import SavePrior

NODES: list[type[io.ComfyNode]] = [
    Concepts,
    BuildPrior,
    SavePrior,
    LoadPrior,
    CFRRefine,
    SaveErasedModel,
    ResidualPrompt,
]


class MaceExtension(ComfyExtension):
    """What the host asks for when it loads the pack."""

    async def on_load(self) -> None:
        files.register_folders()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES


async def comfy_entrypoint() -> ComfyExtension:
    """The host's V3 entry point."""
    return MaceExtension()
