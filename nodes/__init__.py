"""The pack's nodes, and all that knows ComfyUI; the numerics are in `mace`."""

import logging

from comfy_api.latest import ComfyExtension, io

from ..install import too_old
from .baselines.ablation import BaselineAC
from .baselines.esd import BaselineESD
from .baselines.forget import BaselineFMN
from .baselines.negative import NegativePrompt
from .baselines.oce import OrthogonalErasure
from .baselines.sld import SafeLatentDiffusion
from .baselines.speed import NullSpaceErasure
from .baselines.uce import UnifiedConceptEditing
from .erase.concepts import Concepts
from .erase.erase import EraseConcepts
from .erase.find_aliases import FindAliases
from .erase.fuse import FuseLoras
from .erase.images import ConceptImagesNode
from .erase.masks import MaskConcept
from .erase.prior import BuildPrior
from .erase.refine import CFRRefine
from .erase.train import TrainErasureLora
from .files.export_lora import ExportLora
from .files.import_lora import ImportLora
from .files.load_loras import LoadLoras
from .files.load_prior import LoadPrior
from .files.save_loras import SaveLoras
from .files.save_model import SaveErasedModel
from .files.save_preset import SavePreset
from .files.save_prior import SavePrior
from .host import files
from .host.copies import tell_other_copies
from .host.detectors import model_files
from .host.kept.store import forget_on_request
from .measure.evaluate import EvaluateErasure
from .measure.residual import ResidualPrompt

NODES: list[type[io.ComfyNode]] = [
    Concepts,
    BuildPrior,
    SavePrior,
    SavePreset,
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
    NullSpaceErasure,
    OrthogonalErasure,
    SafeLatentDiffusion,
    NegativePrompt,
    BaselineESD,
    BaselineAC,
    BaselineFMN,
]


class MaceExtension(ComfyExtension):
    """What the host asks for when it loads the pack."""

    nodes: list[type[io.ComfyNode]] = []

    async def on_load(self) -> None:
        try:
            files.register_folders()
            model_files.register_folders()
            # The host would keep the nodes before the first whose schema it cannot read, and the others not.
            for node in NODES:
                node.GET_SCHEMA()
            tell_other_copies(NODES[0])
            forget_on_request()
        except Exception as error:
            said = too_old(error)
            if said is None:
                raise
            logging.error(said)
            return
        self.nodes = NODES

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return self.nodes


async def comfy_entrypoint() -> ComfyExtension:
    """The host's V3 entry point."""
    return MaceExtension()
