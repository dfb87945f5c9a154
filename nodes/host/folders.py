"""The host's folders as they are: what others left there that cannot be read is passed over, with a line in the log.

The host asks for lists of files while it loads the pack and whenever a page opens, and drops every node whose lists
fail. A link to itself in input/, a folder that may not be read or another pack's odd entry in folder_paths must not
cost a node.
"""

import logging
import os
from collections.abc import Collection, Iterable

import folder_paths

# Folders, and endings of file names, that could not be registered beside what stands there, by kind.
_beside: dict[str, tuple[list[str], set[str]]] = {}
_said: set[str] = set()


def pass_over(what: str, reason) -> None:
    """Say in the log that something is left out, and why; once."""
    line = f"MACE: {what} is passed over: {reason}"
    if line not in _said:
        _said.add(line)
        logging.warning("%s", line)


def add_folder(kind: str, path: str, *endings: str) -> None:
    """Make a folder, and endings of its files, known to the host for files of a kind.

    Where another pack's entry for the kind cannot be added to, it stays as it is, and only this pack looks here.
    """
    try:
        folder_paths.add_model_folder_path(kind, path)
        folder_paths.folder_names_and_paths[kind][1].update(endings)
    except Exception as error:  # whatever another pack put there
        pass_over(f"the entry {kind!r} of folder_paths", f"{type(error).__name__}: {error}")
        paths, own_endings = _beside.setdefault(kind, ([], set()))
        if path not in paths:
            paths.append(path)
        own_endings.update(endings)


def folders_of(kind: str) -> list[str]:
    """The folders for files of a kind, in order; some may not exist."""
    return list(dict.fromkeys([*_registered(kind)[0], *_beside.get(kind, ([],))[0]]))


def file_names(kind: str) -> list[str]:
    """The files of a kind that the host lists, in folders inside its folders too, sorted."""
    folders, endings = _registered(kind)
    if kind not in _beside and _is_as_the_host_reads_it(kind, folders):
        try:
            return folder_paths.get_filename_list(kind)
        except OSError as error:  # a folder went while it looked
            pass_over(f"a folder of {kind!r}", error)
    endings |= _beside.get(kind, ((), set()))[1]
    found: set[str] = set()
    for folder in folders_of(kind):
        try:
            names, _ = folder_paths.recursive_search(folder, [".git"])
            found.update(folder_paths.filter_files_extensions(names, endings))
        except (OSError, ValueError) as error:
            pass_over(repr(folder), error)
    return sorted(found)


def path_of(kind: str, name: str | None) -> str | None:
    """The path of a file that `file_names` lists; None where it is gone, and for no name."""
    if not name or not isinstance(name, str):
        return None
    inside = os.path.relpath(os.path.join("/", name), "/")
    for folder in folders_of(kind):
        path = os.path.join(folder, inside)
        if os.path.isfile(path):
            return path
    return None


def path_or_raise(kind: str, name: str) -> str:
    """As `path_of`. Raises FileNotFoundError where it is gone."""
    path = path_of(kind, name)
    if path is None:
        raise FileNotFoundError(f"{name!r} is not in the folders of {kind} any more: choose another file")
    return path


def entries(folder: str) -> list[os.DirEntry]:
    """What lies in a folder, sorted by name; nothing where it does not exist or may not be read."""
    try:
        if not os.path.isdir(folder):
            return []
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        pass_over(repr(folder), error)
        return []


def is_file(entry: os.DirEntry) -> bool:
    """Whether it is a file, or a link to one; a link to itself is none."""
    try:
        return entry.is_file()
    except OSError as error:
        pass_over(repr(entry.path), error)
        return False


def _registered(kind: str) -> tuple[list[str], set[str]]:
    """(folders, endings) of a kind's entry in folder_paths, which ought to be (list of str, set of str)."""
    entry = folder_paths.folder_names_and_paths.get(folder_paths.map_legacy(kind))
    parts = entry if isinstance(entry, list | tuple) else () if entry is None else (entry,)
    if len(parts) > 1 and not all(map(_is_path, parts)):
        paths, endings = parts[:2]
    else:
        # None, one thing alone, or a list of folders without endings.
        paths, endings = (parts[0] if len(parts) == 1 else parts), ()
    if _is_path(paths):
        paths = (paths,)
    found = []
    for path in paths if isinstance(paths, Iterable) else (paths,):
        if _is_path(path):
            found.append(os.fsdecode(path))
        else:
            pass_over(f"an entry of {kind!r} in folder_paths", f"{path!r} is no folder")
    known = endings if isinstance(endings, Iterable) and not isinstance(endings, str) else (endings,)
    return found, {ending for ending in known if isinstance(ending, str)}


def _is_as_the_host_reads_it(kind: str, folders: list[str]) -> bool:
    """Whether a kind's entry is as it ought to be. Of a text in place of folders the host searches every letter: /."""
    entry = folder_paths.folder_names_and_paths.get(folder_paths.map_legacy(kind))
    if not isinstance(entry, list | tuple) or len(entry) < 2 or not isinstance(entry[1], Collection):
        return False
    return isinstance(entry[0], list | tuple) and list(entry[0]) == folders


def _is_path(value) -> bool:
    return isinstance(value, str | bytes | os.PathLike)
