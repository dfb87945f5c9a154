"""Files in the host's folders: the artist's inputs, and outputs that appear whole or not at all."""

import contextlib
import errno
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

import folder_paths
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ...mace.messages import MessageError
from .folders import add_folder, entries, is_file
from .prefixes import expanded

PRIORS = "mace_priors"
LORAS = "mace_loras"
JUDGES = "mace_judges"
PRESET_FILES = "mace_presets"
NONE = "none"
# What systems say where nothing more fits: no space, a file too large, a quota.
_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
_NUMBER = re.compile(r"os error (\d+)")


def register_folders() -> None:
    """Make our folders of models/ and output/ known to the host: mace_priors, mace_loras, mace_judges, mace_presets."""
    for kind in (PRIORS, LORAS, JUDGES, PRESET_FILES):
        for root in (folder_paths.models_dir, folder_paths.get_output_directory()):
            add_folder(kind, os.path.join(root, kind), ".json" if kind == PRESET_FILES else ".safetensors")


def input_files(*endings: str) -> list[str]:
    """The files of the host's input folder, not of folders in it, with one of these endings, sorted."""
    found = entries(folder_paths.get_input_directory())
    return [entry.name for entry in found if entry.name.lower().endswith(endings) and is_file(entry)]


def input_path(name: str) -> Path:
    """The path of a file of the input folder. Raises ValueError for one outside it or one that is gone."""
    path = folder_paths.get_annotated_filepath(name)
    if not os.path.isfile(path):
        raise MessageError(f"{name!r} is not in the input folder any more; choose another file")
    return Path(path)


def file_stamp(name: str | None) -> tuple[str, int, int] | None:
    """What changes when an input file changes: name, size and time; None for no file and for a linked name."""
    if not isinstance(name, str) or name in (NONE, ""):
        return None
    try:
        return path_stamp(folder_paths.get_annotated_filepath(name))
    except ValueError:  # outside the folder, which is told when the node runs
        return (name, -1, -1)


def path_stamp(path: str | None) -> tuple[str, int, int] | None:
    """Path, size and time of a file; size and time are -1 where it is gone."""
    if path is None:
        return None
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # ValueError: no file can have this name
        return (path, -1, -1)
    return (path, status.st_size, status.st_mtime_ns)


def save_safetensors(prefix: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Path:
    """Write output/<prefix>_<counter>_.safetensors and return its path.

    The file is written under a temporary name, flushed to disk and put in place only when it is whole; an
    existing file is never replaced. Raises ValueError for a prefix outside the output folder and OSError when
    it cannot be written; then nothing is left behind, neither file nor new folder.
    """
    output, prefix = folder_paths.get_output_directory(), expanded(prefix)
    with _folders_of(Path(output, prefix).parent):
        folder, name, counter, _, _ = folder_paths.get_save_image_path(prefix, output)
        _check_space(folder, tensors)
        temporary = os.path.join(folder, f".{uuid.uuid4().hex}.tmp")
        try:
            _write_tensors(temporary, tensors, metadata, folder)
            return _put_in_place(Path(temporary), Path(folder), name, counter)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)


def save_text(prefix: str, text: str, ending: str) -> Path:
    """Write output/<prefix>_<counter>_<ending> in UTF-8 and return its path. As `save_safetensors`.

    ending: such as ".json".
    """
    output, prefix = folder_paths.get_output_directory(), expanded(prefix)
    with _folders_of(Path(output, prefix).parent):
        folder, name, counter, _, _ = folder_paths.get_save_image_path(prefix, output)
        temporary = Path(folder, f".{uuid.uuid4().hex}.tmp")
        try:
            with open(temporary, "x", encoding="utf-8") as written:
                written.write(text)
                written.flush()
                os.fsync(written.fileno())
            return _put_in_place(temporary, Path(folder), name, counter, ending)
        finally:
            temporary.unlink(missing_ok=True)


def save_folder(
    prefix: str, file_name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], texts: Mapping[str, str]
) -> Path:
    """Write a folder output/<prefix>_<counter>_ with the tensors as file_name and `texts` (by file name, UTF-8).

    As `save_safetensors`: the folder gets its name only when all that is in it is written; nothing is replaced.
    """
    output, prefix = folder_paths.get_output_directory(), expanded(prefix)
    with _folders_of(Path(output, prefix).parent):
        parent, name, counter, _, _ = folder_paths.get_save_image_path(prefix, output)
        _check_space(parent, tensors)
        temporary = Path(parent, f".{uuid.uuid4().hex}.tmp")
        try:
            temporary.mkdir()
            _write_tensors(str(temporary / file_name), tensors, metadata, parent)
            for other, text in texts.items():
                with open(temporary / other, "w", encoding="utf-8") as written:
                    written.write(text)
                    written.flush()
                    os.fsync(written.fileno())
            while True:
                path = Path(parent, f"{name}_{counter:05}_")
                try:
                    # Renaming never replaces a folder that holds anything; one that is empty only some systems do.
                    if not path.exists():
                        return temporary.rename(path)
                except OSError:
                    if not path.exists():
                        raise
                counter += 1
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def all_or_none(prefix: str) -> Iterator[list[Path]]:
    """For several files that belong together: what is put into the list given is removed again after an error.

    Folders up to the prefix's that did not exist before go too.
    """
    with _folders_of(Path(folder_paths.get_output_directory(), expanded(prefix)).parent):
        written: list[Path] = []
        try:
            yield written
        except BaseException:
            for path in written:
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)
            raise


def read_safetensors(path: str, name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a file. Raises ValueError, with its `name`, for one that cannot be read."""
    try:
        with safe_open(path, framework="pt") as opened:
            return {key: opened.get_tensor(key) for key in opened.keys()}, opened.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{name} is not a safetensors file or is damaged: {error}") from None


def _check_space(folder: str, tensors: Mapping[str, Tensor]) -> None:
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    free = shutil.disk_usage(folder).free
    if size > free:
        raise OSError(f"the disk is full: {folder} has {free >> 20} MB left and the file needs {size >> 20} MB")


def _write_tensors(path: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], folder: str) -> None:
    """Write a new safetensors file and flush it to disk. Raises OSError, with `folder`, when it cannot be written."""
    try:
        # As readable as any other file: safetensors replaces it by a private one, which is given this mode.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        mode = os.stat(path).st_mode
        save_file(dict(tensors), path, metadata=dict(metadata))
    except Exception as error:
        # safetensors has its own error class for a failed write, with the number in words; the artist needs the
        # folder's name.
        said = _NUMBER.search(str(error))
        number = int(said[1]) if said else getattr(error, "errno", None)
        full = " Is the disk full?" if number in _FULL else ""
        raise OSError(f"could not write to {folder}: {str(error).rstrip('.')}.{full}") from error
    os.chmod(path, mode)
    with open(path, "rb+") as written:
        os.fsync(written.fileno())


def _put_in_place(temporary: Path, folder: Path, name: str, counter: int, ending: str = ".safetensors") -> Path:
    """Rename to the first free counter without ever replacing a file, even one that appears meanwhile."""
    while True:
        path = folder / f"{name}_{counter:05}_{ending}"
        try:
            os.link(temporary, path)
            return path
        except FileExistsError:
            counter += 1
        except OSError:
            # Some file systems have no hard links; reserving the name first keeps it exclusive there too.
            try:
                os.close(os.open(path, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                counter += 1
                continue
            try:
                os.replace(temporary, path)
            except BaseException:
                path.unlink(missing_ok=True)
                raise
            return path


@contextlib.contextmanager
def _folders_of(folder: Path) -> Iterator[None]:
    """Remove, after an error, the folders up to `folder` that did not exist before."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    except BaseException:
        for path in missing:
            with contextlib.suppress(OSError):
                path.rmdir()
        raise


def saved_result(path: Path) -> dict[str, str]:
    """A file of the output folder as the host's clients name it."""
    inside = path.relative_to(os.path.abspath(folder_paths.get_output_directory()))
    return {"filename": inside.name, "subfolder": inside.parent.as_posix(), "type": "output"}
