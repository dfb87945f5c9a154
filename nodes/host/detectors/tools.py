"""The detectors and segmenters that an artist chooses among, by back-end; their packages are imported when they run."""

from pathlib import Path

from ....install import DINO_TYPES, GROUNDED, SAM_TYPES, TRANSFORMERS
from .found import Detector, Segmenter
from .model_files import (
    AUTO,
    DINO_FOLDERS,
    NO_SEGMENTER,
    SAM_FOLDERS,
    bert_folder,
    chosen,
    model_folders,
    weight_files,
)

__all__ = ["GROUNDED", "TRANSFORMERS", "detector_names", "detector_of", "files_of", "segmenter_names", "segmenter_of"]

DINO_PLACE, SAM_PLACE = "models/grounding-dino", "models/sams"


def detector_names(backend: str) -> list[str]:
    """What there is to detect with."""
    if backend == GROUNDED:
        return [AUTO, *weight_files(DINO_FOLDERS)]
    return [AUTO, *model_folders(DINO_FOLDERS, DINO_TYPES)]


def segmenter_names(backend: str) -> list[str]:
    """What there is to cut out with."""
    if backend == GROUNDED:
        return [AUTO, NO_SEGMENTER, *weight_files(SAM_FOLDERS)]
    return [AUTO, NO_SEGMENTER, *model_folders(SAM_FOLDERS, SAM_TYPES)]


def detector_of(backend: str, name: str) -> Detector:
    """The detector. Raises ValueError with what to install or what to put where."""
    if backend == GROUNDED:
        from . import dino

        _check(backend, dino.missing())
        return dino.DinoDetector(_detector_path(backend, name), bert_folder())
    from . import transformers_models

    _check(backend, transformers_models.missing())
    return transformers_models.load_detector(_detector_path(backend, name))


def _detector_path(backend: str, name: str) -> Path:
    if backend == GROUNDED:
        what = "groundingdino_swint_ogc.pth or groundingdino_swinb_cogcoor.pth"
        return chosen(name, weight_files(DINO_FOLDERS), what, DINO_PLACE, "groundingdino_swin")
    what = "a folder such as grounding-dino-tiny, with config.json, weights and tokenizer,"
    return chosen(name, model_folders(DINO_FOLDERS, DINO_TYPES), what, DINO_PLACE)


def segmenter_of(backend: str, name: str) -> Segmenter | None:
    """The segmenter, None where boxes are to be filled. Raises ValueError as `detector_of`."""
    if name == NO_SEGMENTER:
        return None
    if backend == GROUNDED:
        from . import sam

        _check(backend, sam.missing())
        return sam.SamSegmenter(_segmenter_path(backend, name))
    from . import transformers_models

    _check(backend, transformers_models.missing())
    return transformers_models.load_segmenter(_segmenter_path(backend, name))


def _segmenter_path(backend: str, name: str) -> Path:
    otherwise = f"{SAM_PLACE} (or choose {NO_SEGMENTER!r})"
    if backend == GROUNDED:
        what = "sam_vit_b_01ec64.pth, sam_vit_l_0b3195.pth or sam_vit_h_4b8939.pth"
        return chosen(name, weight_files(SAM_FOLDERS), what, otherwise, "sam_vit_")
    what = "a folder such as sam-vit-base or sam2.1-hiera-small, with config.json and weights,"
    return chosen(name, model_folders(SAM_FOLDERS, SAM_TYPES), what, otherwise)


def files_of(backend: str, detector: str, segmenter: str) -> list[tuple[str, int, int]]:
    """What a detector and a segmenter are read from: (name, bytes, when it was written, in ns) of each file."""
    paths = [_detector_path(backend, detector), *([bert_folder()] if backend == GROUNDED else [])]
    paths += [_segmenter_path(backend, segmenter)] if segmenter != NO_SEGMENTER else []
    # Not what tools leave in hidden folders.
    files = [file for path in paths for file in (sorted(path.glob("[!.]*")) if path.is_dir() else [path])]
    return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]


def _check(backend: str, advice: str | None) -> None:
    if advice:
        raise ValueError(f"the back-end {backend} lacks packages: {advice}")
