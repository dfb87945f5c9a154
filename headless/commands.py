"""The commands: each runs the nodes that its graph would hold, with the widgets that the command line sets."""

import json
from collections.abc import Callable
from pathlib import Path

from .errors import BadInput
from .files import folder_beside, put
from .models import MODELS, Loaded, file_of, open_model
from .session import Session
from .settings import CONCEPTS, ERASE, EVALUATE, EXPORT, FUSE, IMAGES, MASKS, PRIOR, REFINE, SAVE, SAVE_LORAS, TRAIN


def erase(session: Session) -> None:
    """Every stage, with a preset's settings; see Erase Concepts."""
    options, opened = session.options, session.open()
    settings = session.widgets(ERASE, strengths=session.lists.strengths)
    saving, export = session.widgets(SAVE), session.widgets(EXPORT, **_layout(options))
    if export["format"].startswith("PEFT"):
        raise BadInput("--lora-format: PEFT is a folder, and --lora names a file; take ComfyUI or kohya")
    with session.cluster() as cluster:
        prior, loaded, concepts = session.prior(), opened(), session.concepts()
        session.result["native_side"] = session.host.module("nodes.host.model.family").native_side(loaded.model)
        _estimate(session, loaded, concepts, settings, prior, cluster)
        if options.estimate_only:
            return
        if cluster is not None:
            found = cluster.erase(loaded, concepts, settings, prior)
        else:
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


def _estimate(session: Session, loaded: Loaded, concepts, settings: dict, prior, cluster) -> None:
    """Say how long an erasure will take. cluster: what does it, None for this process."""
    stage = session.host.module("nodes.stages.erasing")
    preset = session.host.module("nodes.host.preset_files").find_preset(settings["preset"])
    names = ("width", "height", "seed", "strengths", "find_aliases", "keep_near")
    given = {name: settings[name] for name in names}
    wanted = stage.Wanted(preset=preset, **given, prior=prior, lean=settings["gentle_strong"])
    if stage.trains(loaded.model, preset) or wanted.asks:
        stage.check_vae(loaded.vae)
    import torch

    with session.timed("estimate", "Estimate"), torch.inference_mode():
        if cluster is not None:
            how = stage.how_done(loaded.model, concepts, wanted)
            took, said = cluster.estimate(loaded, concepts, settings, how)
        else:
            found = stage.estimate(loaded.model, loaded.clip, loaded.vae, concepts, wanted)
            took, said = found.seconds, found.lines
    seconds = {name: round(own, 3) for name, own in took.items()}
    lines = list(said) or ["all of it is known from before"]
    session.progress.estimate(seconds, lines)
    session.result["estimate"] = {"seconds": seconds, "lines": lines}


def refine(session: Session) -> None:
    """The closed form alone; see CFR Refine."""
    opened, settings, saving = session.open(), session.widgets(REFINE), session.widgets(SAVE)
    auto = session.widgets(CONCEPTS)["settings"]
    with session.cluster() as cluster:
        prior, loaded = session.prior(), opened()
        concepts = session.concepts(settings=auto)
        if cluster is not None:
            found = cluster.refine(loaded, concepts, settings, prior)[0]
        else:
            given = dict(model=loaded.model, clip=loaded.clip, concepts=concepts, prior=prior)
            found = session.run(REFINE, **settings, **given)
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
    with session.cluster() as cluster:
        prior, loaded, concepts = session.prior(), opened(), session.concepts(settings=auto)
        model, clip = loaded.model, loaded.clip
        if prior is None and captions is not None:
            asked = {**session.host.widgets(PRIOR), "captions": captions, "count": options.caption_count}
            prior = session.run(PRIOR, **asked, clip=clip, concepts=concepts, model=model)[0]
        if cluster is not None:
            loras = cluster.train(loaded, concepts, refining, drawing, masking, settings, prior)
        else:
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
