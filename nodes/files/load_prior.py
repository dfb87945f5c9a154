"""Load Prior: saved moments."""

from comfy_api.latest import io, ui

from ...mace.formats.prior_file import prior_from_file
from ...mace.method.prior import Prior
from ..host import files
from ..host.folders import file_names, path_of, path_or_raise
from ..schema import FILES, PriorType


def report(prior: Prior) -> str:
    """What a prior holds, and what one of an earlier version cannot do, for the artist."""
    lines = [f"{prior.captions} captions ({prior.source})"]
    if prior.preserved:
        lines.append(f"preserved: {', '.join(prior.preserved)}")
    if prior.left_out:
        lines.append(f"left out: {', '.join(prior.left_out)}")
    if prior.texts is None:
        lines.append(
            "saved by an earlier version, without its texts: it steps aside for no list; make it again with Prior, so "
            "that what names a concept can be taken out"
        )
    return "\n".join(lines)


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
            has_intermediate_output=True,
        )

    @classmethod
    def fingerprint_inputs(cls, prior_name=""):
        return files.path_stamp(path_of(files.PRIORS, prior_name))

    @classmethod
    def execute(cls, prior_name) -> io.NodeOutput:
        path = path_or_raise(files.PRIORS, prior_name)
        prior = prior_from_file(*files.read_safetensors(path, prior_name))
        return io.NodeOutput(prior, ui=ui.PreviewText(report(prior)))
