"""Prefixes of the files that nodes save: what the host and the disk will make of them, known before anything runs."""

import os
import re
import tempfile
from pathlib import Path

import folder_paths

# What is added to a prefix, and how long a name may be where the disk does not say.
ENDING, LONGEST = "_00001_.safetensors", 255
_VARIABLES = (("%year%", "0000"), ("%width%", "0"), ("%height%", "0"))
_VARIABLES += tuple((f"%{name}%", "00") for name in ("month", "day", "hour", "minute", "second"))
_DRIVE = re.compile(r"[A-Za-z]:/")


def prefix_error(prefix: str) -> str | None:
    """Why a file name prefix cannot be used, or None."""
    written = _of_this_system(prefix)
    if not written.strip() or not os.path.basename(os.path.normpath(written)).strip(". "):
        return "the file name is empty; give one such as: checkpoints/erased"
    try:
        os.fsencode(written)
    except UnicodeEncodeError as error:
        return f"{prefix!r:.80} holds {written[error.start]!r}, which no file name can hold; write it anew"
    if "\0" in written:
        return f"{prefix!r:.80} holds a zero character, which no file name can hold; write it anew"
    for name, value in _VARIABLES:
        written = written.replace(name, value)
    root = os.path.abspath(folder_paths.get_output_directory())
    path = os.path.abspath(os.path.join(root, written))
    # On Windows a path on another drive has no common path with the folder at all.
    elsewhere = os.path.splitdrive(path)[0] != os.path.splitdrive(root)[0] or bool(_DRIVE.match(written))
    if elsewhere or os.path.commonpath((root, path)) != root:
        return f"{prefix!r:.80} lies outside the output folder; give a name inside it, such as: checkpoints/erased"
    too_long = _too_long(root, os.path.relpath(path, root))
    if too_long:
        return too_long
    folder = os.path.dirname(path)
    if not folder_paths.is_within_directory(root, folder):
        return (
            f"{prefix!r:.80} lies outside the output folder: a folder in it is a link to {os.path.realpath(folder)}, "
            "where ComfyUI does not save: choose another folder, or start ComfyUI with --output-directory"
        )
    found = next(parent for parent in (Path(folder), *Path(folder).parents) if os.path.lexists(parent))
    if not found.is_dir():
        return f"{prefix!r:.80} names {found.name!r:.80} as a folder, and that is a file; choose another name"
    if not os.access(found, os.W_OK | os.X_OK):
        return f"{found} may not be written to; change its permissions, or choose another folder"
    return None


def expanded(prefix: str) -> str:
    """The prefix with the host's variables, such as %year%, filled in. Raises ValueError for one that is no good."""
    problem = prefix_error(prefix)
    if problem:
        raise ValueError(problem)
    # Asked of the host for a folder that is not the real one, since asking also creates the folder.
    with tempfile.TemporaryDirectory() as elsewhere:
        _, name, _, subfolder, _ = folder_paths.get_save_image_path(_of_this_system(prefix), elsewhere)
    return os.path.join(subfolder, name)


def _of_this_system(prefix: str) -> str:
    """A prefix with this system's separators: workflows travel from Windows."""
    return prefix if os.sep == "\\" else prefix.replace("\\", "/")


def _too_long(root: str, inside: str) -> str | None:
    """Why a path inside the output folder is too long for the disk, or None."""
    try:
        most = os.pathconf(root, "PC_NAME_MAX")
    except (AttributeError, OSError, ValueError):  # Windows, or a folder that is not there yet
        most = LONGEST
    *folders, name = inside.split(os.sep)
    for part in (*folders, f"{name}{ENDING}"):
        size = len(part) if os.sep == "\\" else len(os.fsencode(part))
        if size > most:
            return f"{part!r:.60} is too long for a name: it takes {size} bytes, and the disk holds {most}; shorten it"
    return None
