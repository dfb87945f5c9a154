"""The command line: which options a command has, and which widget of which node each of them is.

What a widget takes, and what it starts with, is the node's to say (see `Host.checked`).
"""

import argparse
import importlib.util
import sys
from dataclasses import dataclass

from .errors import BadInput

CONCEPTS, ERASE, SAVE, EXPORT = "MACE_Concepts", "MACE_EraseConcepts", "MACE_SaveErasedModel", "MACE_ExportLora"
REFINE, IMAGES, MASKS, TRAIN = "MACE_CFRRefine", "MACE_ConceptImages", "MACE_MaskConcept", "MACE_TrainErasureLora"
SAVE_LORAS, FUSE, PRIOR, EVALUATE = "MACE_SaveLoras", "MACE_FuseLoras", "MACE_Prior", "MACE_EvaluateErasure"


@dataclass(frozen=True)
class Setting:
    """flag: the option.  widgets: (node, input) of each widget that it sets.  kind: int, float, str, or True or False
    for an option that says so by being there."""

    flag: str
    widgets: tuple[tuple[str, str], ...]
    kind: object
    help: str

    @property
    def dest(self) -> str:
        """The name of its value among the options."""
        return "set_" + self.flag.strip("-").replace("-", "_")


def _setting(flag: str, kind, help: str, *nodes: str, name: str = "") -> Setting:
    own = name or flag.strip("-").replace("-", "_")
    return Setting(flag, tuple((node, own) for node in nodes), kind, help)


_SIZE = "of the training images in pixels; 0: the model's own"
_AUTO = _setting("--preset", str, "what auto means in every stage, such as paper", CONCEPTS, name="settings")
_DTYPE = _setting("--dtype", str, "number format of the file: as loaded, fp16, bf16, fp32", SAVE)
_WEIGHTS = (
    _setting("--lambda1", str, "weight of the prior's captions, or auto", REFINE),
    _setting("--lambda3", str, "weight of the concepts to preserve, or auto", REFINE),
    _setting("--mu", str, "identity weight, or auto", REFINE),
    _setting("--mu-measures", str, "what mu measures a change in", REFINE),
    _setting("--lambda1-form", str, "lambda1 as the paper or as the published code has it", REFINE),
    _setting("--own-words", str, "whether the concept's own words are moved too: auto, on, off", REFINE),
    _setting("--no-pooled-text", False, "leave the pooled text's reading as it is", REFINE, name="pooled_text"),
)
_DRAWING = (
    _setting("--cfg", float, "guidance of the pictures", IMAGES, EVALUATE),
    _setting("--sampler", str, "sampler of the pictures", IMAGES, EVALUATE, name="sampler_name"),
    _setting("--scheduler", str, "scheduler of the pictures", IMAGES, EVALUATE),
)
SETTINGS: dict[str, tuple[Setting, ...]] = {
    "erase": (
        _setting("--preset", str, "all settings by type, such as paper", ERASE),
        _setting("--width", int, f"width {_SIZE}", ERASE),
        _setting("--height", int, f"height {_SIZE}", ERASE),
        _setting("--seed", int, "seed of images and training", ERASE),
        _setting("--aliases", True, "ask the model for other words that draw the same", ERASE, name="find_aliases"),
        _setting("--keep-near", True, "keep the words next to them that draw something else", ERASE),
        _setting("--gentle-strong", float, "-1 (gentle) to 1 (strong); 0 is the preset", ERASE),
        _DTYPE,
        _setting("--rank", int, "rank of --lora", EXPORT),
        _setting("--lora-format", str, "layout of --lora: kohya (unless said), or ComfyUI", EXPORT, name="format"),
    ),
    "refine": (
        _AUTO,
        _setting("--strength", float, "how far the refinement goes, 0 to 1", REFINE),
        *_WEIGHTS,
        _setting("--projections", str, "both, to_k or to_v", REFINE),
        _DTYPE,
    ),
    "train": (
        _AUTO,
        _setting("--rank", str, "rank of the LoRAs, or auto", TRAIN),
        _setting("--steps", str, "training steps, or auto", TRAIN),
        _setting("--learning-rate", str, "learning rate, or auto", TRAIN),
        _setting("--loss", str, "Eq. 3 as printed or as published, or auto", TRAIN),
        _setting("--end-of-text", str, "auto, no or yes", TRAIN),
        _setting("--focus", str, "auto, no or yes", TRAIN),
        _setting("--projections", str, "both, to_k or to_v", REFINE, TRAIN),
        _setting("--no-cfis", False, "train at all timesteps alike", TRAIN, name="cfis"),
        _setting("--t1", int, "lower end of the timesteps", TRAIN),
        _setting("--t2", int, "upper end of the timesteps", TRAIN),
        _setting("--gamma", float, "how steeply their density falls off", TRAIN),
        _setting("--side-by-side", str, "concepts in one forward pass, or auto", TRAIN),
        _setting("--save-memory", True, "a quarter of the memory, a third slower", TRAIN),
        _setting("--again", True, "train again what was trained before", TRAIN),
        _setting("--seed", int, "seed of images and training", IMAGES, TRAIN),
        _setting("--images", int, "training images for each concept", IMAGES, name="count"),
        _setting("--image-steps", int, "sampling steps of the images", IMAGES, name="steps"),
        _setting("--width", int, f"width {_SIZE}", IMAGES),
        _setting("--height", int, f"height {_SIZE}", IMAGES),
        *(Setting(own.flag, own.widgets[:1], own.kind, own.help) for own in _DRAWING),
        _setting("--masks", str, "where the concept is: attention, or whole image", MASKS, name="backend"),
        *_WEIGHTS,
        _setting("--moments", True, "put moments and prior into the file: fusing needs no CLIP then", SAVE_LORAS),
    ),
    "fuse": (
        _setting("--method", str, "closed form, or naive", FUSE),
        _setting("--lambda2", str, "weight of the prior's captions, or auto", FUSE),
        _setting("--lambda3", str, "weight of the concepts to preserve, or auto", FUSE),
        _setting("--mu", str, "identity weight, or auto", FUSE),
        _setting("--pull", str, "to which weights mu draws", FUSE),
        _DTYPE,
    ),
    "evaluate": (
        _setting("--seed", int, "the first seed", EVALUATE),
        _setting("--seeds", int, "number of seeds for each prompt", EVALUATE),
        _setting("--width", int, "width of the pictures; 0: the model's own", EVALUATE),
        _setting("--height", int, "height of the pictures; 0: the model's own", EVALUATE),
        _setting("--steps", int, "sampling steps", EVALUATE),
        *(Setting(own.flag, own.widgets[1:], own.kind, own.help) for own in _DRAWING),
        _setting("--batch-size", int, "pictures drawn and judged together", EVALUATE),
        _setting("--judge", str, "CLIP, NudeNet or classifier file", EVALUATE),
        _setting("--threshold", float, "NudeNet's detections count from this score on", EVALUATE),
    ),
    "prior": (
        _setting("--count", int, "how many captions", PRIOR),
        _setting("--seed", int, "which captions", PRIOR),
        _setting("--preserve-type", str, "what the names of --preserve are", PRIOR),
        _setting("--retention", str, "a list of the paper to keep", PRIOR),
    ),
}
ABOUT = {
    "erase": "the whole of MACE: pictures, masks, refinement, training, fusion; an erased model",
    "refine": "the closed form alone; a refined model",
    "train": "one erasure LoRA for each concept; a set for fuse",
    "fuse": "trained LoRAs into the model, with a strength for each concept; an erased model",
    "evaluate": "what a judge sees in pictures of the base and of the erased model",
    "prior": "the moments of what is to be kept; a file for the others",
}
EPILOG = """Exit codes: 0 done, 1 failed, 2 bad input (nothing was done), 130 stopped by Ctrl-C or SIGTERM.
The last line on stdout is the report, one JSON object, unless --report names a file for it.
What follows -- is given to ComfyUI: -- --cpu --lowvram"""


# What can be done on many machines.
CLUSTERED = ("erase", "refine", "train")


def check_cluster(options) -> None:
    """Raise BadInput where --ray cannot be, for what this copy of the pack or this Python lacks."""
    if not getattr(options, "ray", None):
        return
    if importlib.util.find_spec("headless.cluster") is None:
        raise BadInput("--ray: the registry's archive has no headless/cluster; clone the repository for it")
    if importlib.util.find_spec("ray") is None:
        raise BadInput(f"--ray needs Ray: {sys.executable} -m pip install -r requirements-cluster.txt")
    for own in SETTINGS["erase"]:
        if own.flag in ("--aliases", "--keep-near") and getattr(options, own.dest, None):
            raise BadInput(f"{own.flag}: each search looks at the words of the whole list; run erase without --ray")


def _counted(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return int(text)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise BadInput(f"{message} (see {self.prog} --help)")


def parser() -> argparse.ArgumentParser:
    """The parser of all commands. It raises BadInput in place of ending the process."""
    top = _Parser(prog="python -m headless", description=__doc__.splitlines()[0], epilog=EPILOG, allow_abbrev=False,
                  formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    top.description = "Take concepts out of diffusion models, without a page."
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, about in ABOUT.items():
        own = commands.add_parser(
            name, help=about, description=about, epilog=EPILOG, allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        own.set_defaults(needs_concepts=name not in ("prior", "fuse"))
        _add_files(own, name)
        for setting in SETTINGS[name]:
            kind = {"action": f"store_{str(setting.kind).lower()}"} if isinstance(setting.kind, bool) else {}
            kind = kind or {"type": setting.kind, "metavar": setting.flag.strip("-").upper().replace("-", "_")}
            own.add_argument(setting.flag, dest=setting.dest, default=None, help=setting.help, **kind)
    return top


def _add_files(own: argparse.ArgumentParser, command: str) -> None:
    add = own.add_argument
    add("--model", required=True, help="a checkpoint or diffusion model: a path, or the name that ComfyUI lists")
    add("--clip", nargs="+", default=[], metavar="FILE", help="text encoders, where the model's file has none")
    add("--clip-type", default="stable_diffusion", metavar="TYPE", help="what they are of, as Load CLIP names it")
    add("--clip-skip", type=int, default=1, metavar="N", help="1 for none, as A1111 counts")
    add("--vae", metavar="FILE", help="a VAE in place of the model's")
    if command != "fuse":
        add("--concepts", action="append", default=[], metavar="FILE", help="what is to go, one a line (- for stdin)")
        add("--type", action="append", default=[], help="what it is: object, celebrity, style, explicit; once, or "
            "once for each --concepts")  # fmt: skip
        add("--paper-list", metavar="NAME", help="a list of the paper, such as '10 CIFAR'")
    if command not in ("prior", "evaluate"):
        add("--prior", metavar="FILE", help="what to keep, as the prior command writes it")
    if command in ("erase", "fuse"):
        add("--strengths", nargs="+", default=[], metavar="LINE", help="such as 'dog = 0.5' '* = 1'")
    if command == "erase":
        add("--loras", metavar="FILE", help="write the trained LoRAs too, a set for fuse")
        add("--lora", metavar="FILE", help="write the change as one LoRA too")
        add("--estimate-only", action="store_true", help="say how long it would take, and end")
    if command == "train":
        add("--captions", metavar="FILE|built-in", help="read captions for a prior; without: none")
        add("--caption-count", type=int, default=-1, metavar="N", help="how many of them; -1: as many as Prior takes")
    if command == "fuse":
        add("--loras", action="append", required=True, metavar="FILE", help="a set that train or erase wrote")
    if command == "prior":
        add("--captions", default="built-in", metavar="FILE|built-in", help="captions, one a line, or COCO's .json")
        add("--preserve", metavar="FILE", help="names to keep, one a line")
    if command == "evaluate":
        add("--erased", required=True, metavar="FILE", help="the erased model")
        add("--synonyms", metavar="FILE", help="lines such as: dog | canine, hound")
        add("--keep", metavar="FILE", help="names of what is to stay")
        add("--prompts", nargs="+", default=[], metavar="LINE", help="prompts with {} for the name")
        add("--judge-file", metavar="FILE", help="the judge's file or folder")
        add("--sheet", metavar="PNG", help="write the contact sheet")
    else:
        add("--out", required=True, metavar="FILE", help="the file to write; its folder must be there")
    if command in CLUSTERED:
        add("--ray", metavar="auto|ADDRESS|local", help="do it on the workers of a Ray cluster: the one that is found, "
            "the one at an address, or one of this machine's own")  # fmt: skip
        add("--ray-workers", type=_counted, metavar="N", help="how many workers; without: one for each GPU")
        add("--shared", metavar="FOLDER", help="where workers write results, a folder that all machines see; without: "
            "results are sent to this machine")  # fmt: skip
        add(
            "--unit-moments", type=_counted, default=32, metavar="N", help="concepts whose moments are one unit of work"
        )
        add("--unit-loras", type=_counted, default=8, metavar="N", help="concepts that are drawn and trained together")
        add("--partial", action="store_true", help="go on without concepts whose units failed")
    add("--overwrite", action="store_true", help="replace files that are there")
    add("--report", metavar="FILE", help="write the report there")
    add("--json-progress", action="store_true", help="progress as lines of JSON on stdout, the report last")
    add("--verbose", action="store_true", help="ComfyUI's log on stderr")
