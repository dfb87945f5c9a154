"""The judges' files: classifiers and CLIP models in the host's model folders."""

import os
from pathlib import Path

from ....mace.pipeline.evaluation import CLASSIFIER, CLIP, NUDENET
from .. import files
from ..folders import entries, file_names, folders_of, path_of

KINDS = (CLIP, NUDENET, CLASSIFIER)
CLIP_FOLDERS = "clip_vision"


def _folders() -> dict[str, Path]:
    """The model folders that transformers reads, by name: those with a config.json in them."""
    found: dict[str, Path] = {}
    for kind in (files.JUDGES, CLIP_FOLDERS):
        for root in folders_of(kind):
            for entry in entries(root):
                if os.path.isfile(os.path.join(entry.path, "config.json")):
                    found.setdefault(entry.name, Path(entry.path))
    return found


def judge_files() -> list[str]:
    """What there is to judge with: files of mace_judges, and folders of it and of clip_vision."""
    folders = _folders()
    single = [name for name in file_names(files.JUDGES) if Path(name).parts[0] not in folders]
    return [*single, *sorted(folders)]


def judge_path(name: str) -> Path | None:
    """The file or folder of one of `judge_files`, or None."""
    if name not in judge_files():
        return None
    if name in (folders := _folders()):
        return folders[name]
    path = path_of(files.JUDGES, name)
    return None if path is None else Path(path)


def file_stamps(name: str | None) -> list | None:
    """What changes when a judge's files change; None for no file and for a linked name."""
    path = judge_path(name) if name else None
    return None if path is None else stamps(path)


def stamps(path: Path) -> list:
    """What changes when a file, or one in a folder, changes."""
    parts = [entry.path for entry in entries(str(path))] if path.is_dir() else [str(path)]
    return [files.path_stamp(part) for part in parts]


def file_error(kind: str, name: str) -> str | None:
    """Why a judge of this kind cannot be made of this file, or None."""
    if kind == NUDENET:
        return None
    folder = f"models/{files.JUDGES}"
    wanted = {
        CLIP: f"a CLIP model's folder with config.json, weights and tokenizer (as transformers saves it) in {folder} "
        f"or models/{CLIP_FOLDERS}",
        CLASSIFIER: f"a judge's .safetensors, or an image classification model's folder, in {folder}",
    }[kind]
    if name == files.NONE:
        return f"judge_file: the judge {kind} needs one: put {wanted}, and choose it"
    path = judge_path(name)
    if path is None:
        return f"judge_file: {name!r} is not there any more: put {wanted}"
    if kind == CLIP and not path.is_dir():
        return f"judge_file: {name!r} is a file, and the judge CLIP needs a folder: put {wanted}"
    return None
