"""Where detectors and segmenters lie: the folders that other packs use too."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import folder_paths

from ....install import BERT, BERT_FILES, WEIGHTS, lacking_files, model_type
from ..folders import add_folder, entries, folders_of, is_file

AUTO, NO_SEGMENTER = "auto", "none: fill the boxes"
DINO_FOLDERS, SAM_FOLDERS = ("grounding-dino", "groundingdino"), ("sams",)


def register_folders() -> None:
    """Make models/grounding-dino, models/groundingdino and models/sams known to the host."""
    for kind in (*DINO_FOLDERS, *SAM_FOLDERS):
        add_folder(kind, os.path.join(folder_paths.models_dir, kind))


def _entries(kinds: Sequence[str]) -> list[os.DirEntry]:
    return [entry for kind in kinds for root in folders_of(kind) for entry in entries(root)]


def weight_files(kinds: Sequence[str]) -> dict[str, Path]:
    """Single files of weights in the folders of these kinds, by name; of two with one name, the first."""
    found: dict[str, Path] = {}
    for entry in _entries(kinds):
        if entry.name.lower().endswith(WEIGHTS) and is_file(entry):
            found.setdefault(entry.name, Path(entry.path))
    return found


def model_folders(kinds: Sequence[str], types: Sequence[str]) -> dict[str, Path]:
    """Folders of models of these types, as transformers saves them, in the folders of these kinds, by name."""
    found: dict[str, Path] = {}
    for entry in _entries(kinds):
        if model_type(Path(entry.path)) in types:
            found.setdefault(entry.name, Path(entry.path))
    return found


def chosen(name: str, found: Mapping[str, Path], what: str, where: str, published: str = "") -> Path:
    """The path of a name; for auto the first whose name begins as the published ones do, or else the first there is.

    Raises ValueError, saying what to put where.
    """
    if name == AUTO:
        # Other packs keep models of their own in these folders.
        name = next((own for own in found if own.lower().startswith(published)), next(iter(found), AUTO))
    if name not in found:
        said = "there is none" if name == AUTO else f"{name!r} is not there any more"
        raise ValueError(f"{said}: put {what} into {where}, and press R in ComfyUI")
    return found[name]


def bert_folder() -> Path:
    """The folder of bert-base-uncased, which GroundingDINO reads words with. Raises ValueError, saying what is missing.

    Looked for in models/, models/text_encoders, models/clip and beside the detectors.
    """
    roots = [folder_paths.models_dir]
    for kind in ("text_encoders", *DINO_FOLDERS):
        roots += folders_of(kind)
    lacking = ""
    for root in roots:
        folder = Path(root, BERT)
        if not folder.is_dir():
            continue
        missing = lacking_files(folder, BERT_FILES)
        if not missing:
            return folder
        lacking = lacking or f"; {folder} lacks {', '.join(missing)}"
    raise ValueError(
        f"GroundingDINO reads words with {BERT}, which is not there: put its config.json, model.safetensors, "
        f"tokenizer.json, tokenizer_config.json and vocab.txt into models/{BERT}{lacking}"
    )
