"""Save Prior: moments as a file."""

from comfy_api.latest import io, ui

from ...mace.formats.prior_file import prior_to_file
from ..host import files
from ..host.prefixes import prefix_error
from ..schema import FILES, PriorType


class SavePrior(io.ComfyNode):
    """Writes a prior as safetensors with the text encoder's fingerprint."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MACE_SavePrior",
            display_name="Save Prior (MACE)",
            category=FILES,
            description="Saves a prior for Load Prior. Saved in output/mace_priors or put in models/mace_priors.",
            search_aliases=["mace", "prior"],
            inputs=[
                PriorType.Input("prior", tooltip="The moments to save."),
                io.String.Input(
                    "filename_prefix",
                    default=f"{files.PRIORS}/prior",
                    tooltip="Path inside the output folder; a counter is added and nothing is overwritten. Load Prior "
                    f"looks in output/{files.PRIORS} and models/{files.PRIORS}.",
                ),
            ],
            outputs=[],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, filename_prefix=None):
        return filename_prefix is None or prefix_error(filename_prefix) or True

    @classmethod
    def execute(cls, prior, filename_prefix) -> io.NodeOutput:
        path = files.save_safetensors(filename_prefix, *prior_to_file(prior))
        return io.NodeOutput(ui=ui.PreviewText(str(path)))
