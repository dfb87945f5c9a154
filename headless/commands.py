"""The commands: each runs the nodes that its graph would hold, with the widgets that the command line sets."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from .errors import BadInput
from .files import folder_beside, put, target_of
from .host import Host
from .lists import Lists
from .models import MODELS, Loaded, file_of, files_of, load, open_model
from .progress import Silent
from .settings import (
    CONCEPTS,
    ERASE,
    EVALUATE,
    EXPORT,
    FUSE,
    IMAGES,
    MASKS,
    PRIOR,
    REFINE,
    SAVE,
    SAVE_LORAS,
    SETTINGS,
    TRAIN,
)

BUILT_IN = "built-in"
# Files that a command writes, by option.
OUTPUTS = ("out", "loras", "lora", "sheet")
# Stages that are no node of the pack.
_TITLES = {"load": "Open the model", "estimate": "Estimate"}


def targets(options) -> dict[str, Path]:
    """The files that a command is to write, by option. Raises BadInput."""
    names = {name: getattr(options, name, None) for name in OUTPUTS}
    found = {
        name: target_of(own, f"--{name}", options.overwrite) for name, own in names.items() if isinstance(own, str)
    }
    if len(set(found.values())) < len(found):
        raise BadInput("two of the files to write have one name")
    return found


@dataclass
class Session:
    """One command on an open host. stages: what ran: node, seconds and its own words.  files: what was written."""

    host: Host
    options: object
    lists: Lists
    targets: dict[str, Path]
    progress: Silent
    stages: list[dict] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    result: dict = field(default_factory=dict)

    def widgets(self, node: str, **given) -> dict:
        """All settings of a node: those of its widgets, of the command line, and given here. Raises BadInput."""
        asked = {
            name: value
            for setting in SETTINGS[self.options.command]
            if (value := getattr(self.options, setting.dest)) is not None
            for own, name in setting.widgets
            if own == node
        }
        return {**self.host.widgets(node), **self.host.checked(node, {**asked, **given})}

    @contextmanager
    def timed(self, node: str, title: str) -> Iterator[dict]:
        """A stage of the report, which may be given its words."""
        self.progress.stage(title)
        begun, entry = time.perf_counter(), {"node": node, "title": title}
        yield entry
        self.stages.append({**entry, "seconds": round(time.perf_counter() - begun, 3)})

    def run(self, node: str, **inputs):
        """A node's outputs; its own words go into the report."""
        import comfy.model_management

        title = self.host.node_classes[node].GET_SCHEMA().display_name.removesuffix(" (MACE)")
        with self.timed(node, title) as entry:
            found = self.host.run(node, **inputs)
            shown = found.ui.as_dict() if hasattr(found.ui, "as_dict") else found.ui or {}
            entry["text"] = [line for text in shown.get("text", ()) for line in text.splitlines()]
            comfy.model_management.throw_exception_if_processing_interrupted()
        return found

    def concepts(self, **settings):
        """The whole list, as chained Concepts nodes give it. settings: of the nodes, what auto means."""
        found = ()
        for own in self.lists.concepts:
            given = dict(concepts=own.text, type=own.type, preset=own.preset, prompt_file="none", **settings)
            found = self.host.run(CONCEPTS, **given, more=found)[0]
        return found

    def save(self, name: str, folder: str, node: str, **inputs) -> None:
        """Run a node that saves one file, and give it the name that the command line says."""
        target, paths = self.targets[name], self.host.folder_paths
        before = paths.get_output_directory()
        with folder_beside(target) as beside:
            paths.set_output_directory(str(beside))
            try:
                self.run(node, filename_prefix=f"{folder}/{target.stem}", **inputs)
            finally:
                paths.set_output_directory(before)
            (written,) = (beside / folder).iterdir()
            put(written, target, self.options.overwrite)
            # Where it lay meanwhile is nobody's business.
            self.stages[-1]["text"] = [line for line in self.stages[-1]["text"] if str(beside) not in line]
        self.files[name] = str(target)

    def save_model(self, model, loaded: Loaded, settings: dict) -> None:
        """Write a model as its file was: a checkpoint, or the diffusion model alone."""
        whole = {"clip": loaded.clip, "vae": loaded.vae} if loaded.whole else {}
        folder = "checkpoints" if loaded.whole else "diffusion_models"
        self.save("out", folder, SAVE, model=model, dtype=settings["dtype"], **whole)

    def listed(self, name: str, kind: str, option: str) -> str:
        """The name by which a node knows a file of a kind, whose folder is made known to the host."""
        path = file_of(self.host, name, (kind,), option)
        self.host.folder_paths.add_model_folder_path(kind, str(path.parent), is_default=True)
        self.host.folder_paths.filename_list_cache.pop(kind, None)
        return path.name

    def prior(self):
        """What --prior names, or None."""
        name = getattr(self.options, "prior", None)
        return name and self.run("MACE_LoadPrior", prior_name=self.listed(name, "mace_priors", "--prior"))[0]

    def open(self) -> Callable[[], Loaded]:
        """Find the model's files now, and open them when asked."""
        files = files_of(self.host, self.options)

        def opened() -> Loaded:
            with self.timed("load", _TITLES["load"]):
                return load(self.host, files)

        return opened

    def captions(self, name: str) -> str:
        """The name of a captions' file in the input folder, which becomes the file's own."""
        if name == BUILT_IN:
            return name
        path = file_of(self.host, name, (), "--captions")
        self.host.folder_paths.set_input_directory(str(path.parent))
        return path.name


def erase(session: Session) -> None:
    """Every stage, with a preset's settings; see Erase Concepts."""
    options, opened = session.options, session.open()
    settings = session.widgets(ERASE, strengths=session.lists.strengths)
    saving, export = session.widgets(SAVE), session.widgets(EXPORT, **_layout(options))
    if export["format"].startswith("PEFT"):
        raise BadInput("--lora-format: PEFT is a folder, and --lora names a file; take ComfyUI or kohya")
    prior, loaded, concepts = session.prior(), opened(), session.concepts()
    _estimate(session, loaded, concepts, settings, prior)
    if options.estimate_only:
        return
    found = session.run(
        ERASE, **settings, model=loaded.model, clip=loaded.clip, vae=loaded.vae, concepts=concepts, prior=prior
    )
    session.save_model(found[0], loaded, saving)
    loras = found[1]
    if options.loras:
        if hasattr(loras, "loras"):
            moments = session.host.widgets(SAVE_LORAS)
            session.save("loras", "mace_loras", SAVE_LORAS, **_without_name(moments), loras=loras)
        else:
            session.progress.warn("--loras: none are trained for this model, and no file is written")
    if options.lora:
        session.save("lora", "loras", EXPORT, **_without_name(export), base=loaded.model, edited=found[0])


def _layout(options) -> dict:
    """The layout of --lora: the one that most programs read, unless another is asked for."""
    return {} if options.set_lora_format else {"format": "kohya"}


def _without_name(settings: dict) -> dict:
    return {name: value for name, value in settings.items() if name != "filename_prefix"}


def _estimate(session: Session, loaded: Loaded, concepts, settings: dict, prior) -> None:
    """Say how long an erasure will take, where LoRAs are trained; the closed form alone needs none."""
    stage = session.host.module("nodes.stages.erasing")
    if not stage.is_unet(loaded.model):
        session.result["estimate"] = {"seconds": {}, "lines": ["in closed form alone: nothing is trained"]}
        return
    names = ("width", "height", "seed", "strengths", "find_aliases")
    preset = session.host.module("nodes.host.preset_files").find_preset(settings["preset"])
    given = {name: settings[name] for name in names}
    wanted = stage.Wanted(preset=preset, **given, prior=prior, lean=settings["gentle_strong"])
    stage.check_vae(loaded.vae)
    import torch

    with session.timed("estimate", _TITLES["estimate"]), torch.inference_mode():
        found = stage.estimate(loaded.model, loaded.clip, loaded.vae, concepts, wanted)
    seconds = {name: round(own, 3) for name, own in found.seconds.items()}
    lines = list(found.lines) or ["all of it is known from before"]
    session.progress.estimate(seconds, lines)
    session.result["estimate"] = {"seconds": seconds, "lines": lines}


def refine(session: Session) -> None:
    """The closed form alone; see CFR Refine."""
    opened, settings, saving = session.open(), session.widgets(REFINE), session.widgets(SAVE)
    auto = session.widgets(CONCEPTS)["settings"]
    prior, loaded = session.prior(), opened()
    concepts = session.concepts(settings=auto)
    found = session.run(REFINE, **settings, model=loaded.model, clip=loaded.clip, concepts=concepts, prior=prior)
    session.save_model(found[0], loaded, saving)


def train(session: Session) -> None:
    """Refinement, pictures, masks and one LoRA for each concept; see Train Erasure LoRA."""
    options, opened = session.options, session.open()
    refining, drawing, masking = session.widgets(REFINE), session.widgets(IMAGES), session.widgets(MASKS)
    settings, saving = session.widgets(TRAIN), session.widgets(SAVE_LORAS)
    captions, auto = None, session.widgets(CONCEPTS)["settings"]
    if options.captions:
        captions = session.captions(options.captions)
        session.host.checked(PRIOR, {"count": options.caption_count})
    prior, loaded, concepts = session.prior(), opened(), session.concepts(settings=auto)
    model, clip = loaded.model, loaded.clip
    if prior is None and captions is not None:
        asked = {**session.host.widgets(PRIOR), "captions": captions, "count": options.caption_count}
        prior = session.run(PRIOR, **asked, clip=clip, concepts=concepts, model=model)[0]
    refined = session.run(REFINE, **refining, model=model, clip=clip, concepts=concepts, prior=prior)[0]
    images = session.run(IMAGES, **drawing, model=model, clip=clip, vae=loaded.vae, concepts=concepts)[0]
    masks = session.run(MASKS, **masking, model=model, clip=clip, images=images)[0]
    loras = session.run(TRAIN, **settings, model=refined, clip=clip, images=images, masks=masks)[0]
    session.save("out", "mace_loras", SAVE_LORAS, **_without_name(saving), loras=loras)


def fuse(session: Session) -> None:
    """Trained LoRAs into the original model; see Fuse LoRAs."""
    opened = session.open()
    settings = session.widgets(FUSE, strengths=session.lists.strengths)
    saving, prior, loras = session.widgets(SAVE), session.prior(), None
    for name in session.options.loras:
        chosen = session.listed(name, "mace_loras", "--loras")
        more = {} if loras is None else {"more": loras}
        loras = session.run("MACE_LoadLoras", loras_name=chosen, **more)[0]
    loaded = opened()
    found = session.run(FUSE, **settings, model=loaded.model, clip=loaded.clip, loras=loras, prior=prior)
    session.save_model(found[0], loaded, saving)


def prior(session: Session) -> None:
    """The moments of captions and of names to keep; see Prior."""
    opened, captions = session.open(), session.captions(session.options.captions)
    settings = {**session.widgets(PRIOR, preserve=session.lists.preserve), "captions": captions}
    loaded = opened()
    found = session.run(PRIOR, **settings, clip=loaded.clip, model=loaded.model, concepts=session.concepts())
    session.save("out", "mace_priors", "MACE_SavePrior", prior=found[0])


def evaluate(session: Session) -> None:
    """Both models' pictures before a judge; see Evaluate Erasure."""
    options, opened, lists = session.options, session.open(), session.lists
    erased = file_of(session.host, options.erased, MODELS, "--erased")
    given = {"synonyms": lists.synonyms, "keep": lists.keep, "judge_file": "none"}
    if lists.prompts:
        given["prompts"] = lists.prompts
    if options.judge_file:
        given["judge_file"] = _judge(session)
    settings, loaded = session.widgets(EVALUATE, **given), opened()
    with session.timed("load", "Open the erased model"):
        other = open_model(erased, session.host.folder_paths.get_folder_paths("embeddings"))[0]
    table, results, sheet, *_ = session.run(
        EVALUATE, **settings, model=loaded.model, erased_model=other, clip=loaded.clip, vae=loaded.vae,
        concepts=session.concepts(),
    ).result  # fmt: skip
    session.result.update(table=table.splitlines(), results=json.loads(results))
    if options.sheet:
        from PIL import Image

        target = session.targets["sheet"]
        with folder_beside(target) as beside:
            Image.fromarray((sheet[0] * 255).round().byte().cpu().numpy()).save(beside / "sheet.png")
            put(beside / "sheet.png", target, options.overwrite)
        session.files["sheet"] = str(target)


def _judge(session: Session) -> str:
    """The name by which Evaluate Erasure knows a judge's file or folder."""
    path = Path(session.options.judge_file).expanduser()
    if path.is_dir():
        session.host.folder_paths.add_model_folder_path("mace_judges", str(path.absolute().parent), is_default=True)
        return path.name
    return session.listed(session.options.judge_file, "mace_judges", "--judge-file")


COMMANDS: dict[str, Callable[[Session], None]] = {
    "erase": erase, "refine": refine, "train": train, "fuse": fuse, "evaluate": evaluate, "prior": prior,
}  # fmt: skip
