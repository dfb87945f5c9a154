"""The pack's nodes. Only this package knows ComfyUI; the numerics are in `mace`."""

from comfy_api.latest import ComfyExtension, io

from . import files
from .baselines.ablation import BaselineAC
from .baselines.esd import BaselineESD
from .baselines.forget import BaselineFMN
from .baselines.negative import NegativePrompt
from .baselines.sld import SafeLatentDiffusion
from .baselines.uce import UnifiedConceptEditing
from .concepts import Concepts
from .detectors import model_files
from .erase import EraseConcepts
from .evaluate import EvaluateErasure
from .export_lora import ExportLora
from .find_aliases import FindAliases
from .fuse import FuseLoras
from .images import ConceptImagesNode
from .import_lora import ImportLora
from .load_loras import LoadLoras
from .load_prior import LoadPrior
from .masks import MaskConcept
from .prior import BuildPrior
from .refine import CFRRefine
from .residual import ResidualPrompt
from .save_loras import SaveLoras
from .save_model import SaveErasedModel
from .save_prior import SavePrior
from .store import forget_on_request
from .train import TrainErasureLora

NODES: list[type[io.ComfyNode]] = [
    Concepts,
    BuildPrior,
    SavePrior,
    LoadPrior,
    CFRRefine,
    ConceptImagesNode,
    FindAliases,
    MaskConcept,
    TrainErasureLora,
    FuseLoras,
    EraseConcepts,
    SaveErasedModel,
    SaveLoras,
    LoadLoras,
    ImportLora,
    ExportLora,
    ResidualPrompt,
    EvaluateErasure,
    UnifiedConceptEditing,
    SafeLatentDiffusion,
    NegativePrompt,
    BaselineESD,
    BaselineAC,
    BaselineFMN,
]


class MaceExtension(ComfyExtension):
    """What the host asks for when it loads the pack."""

    async def on_load(self) -> None:
        files.register_folders()
        model_files.register_folders()
        forget_on_request()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES


async def comfy_entrypoint() -> ComfyExtension:
    """The host's V3 entry point."""
    return MaceExtension()
