"""Load Prior: saved moments."""

from comfy_api.latest import io

from ...mace.formats.prior_file import prior_from_file
from ..host import files
from ..host.folders import file_names, path_of, path_or_raise
from ..schema import FILES, PriorType


class LoadPrior(io.ComfyNode):
    """Reads a prior saved by Save Prior."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MACE_LoadPrior",
            display_name="Load Prior (MACE)",
            category=FILES,
            description="Loads a prior that Save Prior wrote. CFR Refine refuses it for another text encoder.",
            search_aliases=["mace", "prior"],
            inputs=[
                io.Combo.Input(
                    "prior_name",
                    options=file_names(files.PRIORS),
                    tooltip=f"A file of models/{files.PRIORS} or output/{files.PRIORS}.",
                ),
            ],
            outputs=[PriorType.Output("prior", tooltip="The moments, for CFR Refine.")],
        )

    @classmethod
    def fingerprint_inputs(cls, prior_name=""):
        return files.path_stamp(path_of(files.PRIORS, prior_name))

    @classmethod
    def execute(cls, prior_name) -> io.NodeOutput:
        path = path_or_raise(files.PRIORS, prior_name)
        return io.NodeOutput(prior_from_file(*files.read_safetensors(path, prior_name)))
