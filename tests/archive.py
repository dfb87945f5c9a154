"""The registry archive, as `comfy node publish` packs it: what git tracks, without what .comfyignore names."""

import subprocess
import zipfile
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent


def packed_names() -> list[str]:
    """The files of the archive, as paths inside it."""

    def listed(*options: str) -> set[str]:
        # Names are separated by zeros, so that those with spaces and other letters stay as they are.
        command = ["git", "ls-files", "-z", "--cached", *options]
        found = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=True).stdout
        return set(filter(None, found.split("\0")))

    # .comfyignore has .gitignore's patterns, and git reads them.
    return sorted(listed() - listed("--ignored", "--exclude-from=.comfyignore"))


def build_archive(path: Path) -> Path:
    """Write the archive to `path`; returns it."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in packed_names():
            archive.write(REPO / name, name)
    return path


def install_archive(archive: Path, custom_nodes: Path, name: str = "mace-comfyui") -> Path:
    """Unpack an archive as a custom node; returns its folder."""
    folder = custom_nodes / name
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(folder)
    return folder
