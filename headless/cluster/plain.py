"""What is sent to workers, as plain values: their pack may lie in another folder, and its classes have other names."""

import hashlib
from dataclasses import asdict
from pathlib import Path

from ..models import Files


def files_to(files: Files) -> dict:
    """Plain values of `Files`."""
    clip, vae = list(map(str, files.clip)), files.vae and str(files.vae)
    return {**asdict(files), "model": str(files.model), "clip": clip, "vae": vae}


def files_from(plain: dict) -> Files:
    """`Files` of plain values."""
    paths = {"model": Path(plain["model"]), "clip": tuple(map(Path, plain["clip"]))}
    return Files(**{**plain, **paths, "vae": plain["vae"] and Path(plain["vae"])})


def model_key(files: Files) -> str:
    """SHA-256 (hex) of the files that a model is opened from, and of how: the same on every device."""
    digest = hashlib.sha256(f"{len(files.clip)} {files.clip_type} {files.clip_skip} {files.vae is None};".encode())
    for path in (files.model, *files.clip, *([] if files.vae is None else [files.vae])):
        with open(path, "rb") as file:
            while part := file.read(1 << 22):
                digest.update(part)
        digest.update(b";")
    return digest.hexdigest()


def concept_from(host, plain: dict):
    """The pack's Concept of plain values."""
    own = {name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()}
    return host.module("mace.concepts.concept").Concept(**own)


def training_to(options, types) -> dict:
    """Plain values of the pack's TrainOptions, for concepts of some types."""
    cfis = asdict(options.timesteps) or None
    same = {name: value for name, value in vars(options).items() if name not in ("timesteps", "by_type")}
    rows = {kind: list(asdict(options.by_type(kind)).values()) for kind in sorted(types)}
    return {"same": same, "cfis": cfis, "rows": rows}


def training_from(host, plain: dict):
    """The pack's TrainOptions of plain values."""
    schedule = host.module("mace.method.schedule")
    row = host.module("mace.presets.table10").LoraRow
    rows = {kind: row(*own) for kind, own in plain["rows"].items()}
    timesteps = schedule.Uniform() if plain["cfis"] is None else schedule.Cfis(**plain["cfis"])
    options = host.module("mace.pipeline.train_options").TrainOptions
    return options(**plain["same"], timesteps=timesteps, by_type=rows.__getitem__)
