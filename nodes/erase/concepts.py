"""Concepts: what to erase, one a line."""

from comfy_api.latest import io

from ...mace.concepts.concept import (
    TYPES,
    Concept,
    ConceptError,
    ConceptList,
    comma_lines,
    lines_error,
    merge,
    parse_concepts,
)
from ...mace.concepts.lists import PAPER_LISTS
from ...mace.concepts.notation import passed_over
from ...mace.concepts.templates import read_templates
from ...mace.presets.presets import PAPER
from ..host import files
from ..host.preset_files import preset_stamp, presets
from ..schema import ERASE, ConceptsType


def read_prompt_file(name: str) -> tuple[str, ...]:
    """The artist's own prompt templates from a text file of the input folder; none for NONE."""
    if name in (files.NONE, "", None):
        return ()
    try:
        return read_templates(files.input_path(name).read_text(encoding="utf-8-sig"), name)
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}: {error}") from None


def listed(text: str, type: str, preset: str, prompt_file: str) -> tuple[Concept, ...]:
    """The concepts of a node: the preset's, then the lines'. Raises ConceptError or ValueError."""
    templates = read_prompt_file(prompt_file)
    chosen = [
        Concept(target, mapping, kind, (), templates if kind == type else ())
        for target, mapping, kind in PAPER_LISTS.get(preset, ())
    ]
    return merge(chosen, parse_concepts(text, type, templates))


class Concepts(io.ComfyNode):
    """One concept a line, a type for the lines or for one, presets of the paper's lists; nodes chain."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MACE_Concepts",
            display_name="Concepts (MACE)",
            category=ERASE,
            description="What to erase. One concept a line, things, people and styles in one list.",
            search_aliases=["erase", "unlearn", "remove concept", "forget", "mace", "concept erasure", "nsfw"],
            inputs=[
                io.String.Input(
                    "concepts",
                    multiline=True,
                    dynamic_prompts=False,
                    default="",
                    placeholder="airplane -> ground\ncat | kitty, feline -> forest",
                    tooltip="One concept a line:\n"
                    "  target -> mapping\n"
                    "  target | alias, alias -> mapping\n"
                    "  [style] target -> mapping\n"
                    "The mapping is what prompts with the target are steered to: a broader or neutral phrase. Without "
                    "one, the type's usual mapping is taken (object: sky, or Table 6's for the ten CIFAR classes; "
                    "celebrity: a person; style: art; explicit: a person wearing clothes). Aliases are erased with the "
                    "target. Text after # is a comment; a phrase with signs of its own stands in "
                    '"double quotes".',
                ),
                io.Combo.Input(
                    "type",
                    options=list(TYPES),
                    default="object",
                    tooltip="Selects the prompts the concept is read in and the automatic settings (Table 10 of the "
                    "paper): what the lines are that say no type of their own, as [style] in front of a line does.",
                ),
                io.Combo.Input(
                    "preset",
                    options=[files.NONE, *PAPER_LISTS],
                    default=files.NONE,
                    tooltip="Adds a list of the paper (Tables 6, 7, 9) before the lines, with its mappings and type.",
                ),
                io.Combo.Input(
                    "prompt_file",
                    options=[files.NONE, *files.input_files(".txt")],
                    default=files.NONE,
                    advanced=True,
                    tooltip="A text file of the input folder with prompts of your own, one a line, {} where the phrase "
                    "goes. They are used besides the built-in prompts, for concepts of the type chosen here.",
                ),
                ConceptsType.Input(
                    "more", optional=True, tooltip="Concepts of another node; they come before this node's."
                ),
                io.Combo.Input(
                    "settings",
                    options=list(presets()),
                    default=PAPER,
                    optional=True,
                    tooltip="All automatic settings behind this list in one choice: what auto stands for in CFR "
                    "Refine, Train Erasure LoRA and Fuse LoRAs. paper: Table 10 by type, with end-of-text and "
                    "padding in the loss, as the published code has them; where the table is silent (ours) a small mu "
                    "for explicit content, its median mu for other objects, and lambda3 between its numbers of people. "
                    "paper, as released: the published code's sum of norms and squared lambda1 too. The others are "
                    "for the models they were found on, such as the demo model, or are yours (Save Preset). "
                    "In a chain of nodes one choice other than the paper's holds for all.",
                ),
            ],
            outputs=[ConceptsType.Output("concepts", tooltip="The whole list, in order.")],
            has_intermediate_output=True,
        )

    @classmethod
    def validate_inputs(cls, concepts=None):
        if concepts is None:  # linked: it is there only when the node runs
            return True
        # The host marks every input named here when one is wrong, so only the lines are asked for. What is wrong
        # with them under one type alone shows when the node runs.
        return lines_error(concepts) or True

    @classmethod
    def fingerprint_inputs(cls, prompt_file=files.NONE, settings=PAPER, **_):
        return [files.file_stamp(prompt_file), preset_stamp(settings)]

    @classmethod
    def execute(cls, concepts, type, preset, prompt_file, more=None, settings=PAPER) -> io.NodeOutput:
        own = ConceptList(listed(concepts, type, preset, prompt_file), "" if settings == PAPER else settings)
        chain = merge(more or (), own)
        if not chain:
            said = "; ".join(["write one concept a line, or choose a preset", *passed_over(concepts)])
            raise ConceptError(f"the list of concepts is empty: {said}")
        # Said also where there is nothing to say: the page would leave standing what the last run said.
        said = [*passed_over(concepts), *comma_lines(concepts)]
        return io.NodeOutput(chain, ui={"text": ("\n".join(said),) if said else ()})
