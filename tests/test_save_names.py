"""Names of saved files: what the host and the disk will not take is told before anything runs, in the right words."""

import os
from pathlib import Path

import pytest
import torch

pytestmark = [pytest.mark.host, pytest.mark.skipif(os.name == "nt", reason="names of another kind")]

SAVERS = ("MACE_SaveErasedModel", "MACE_SaveLoras", "MACE_SavePrior", "MACE_ExportLora")
# The host adds _00001_.safetensors to a name, and disks hold 255 bytes.
MOST = 236


@pytest.fixture
def output(comfy_host, monkeypatch, tmp_path):
    """An output folder of this test's own."""
    folder = tmp_path / "output"
    folder.mkdir()
    monkeypatch.setattr(comfy_host.folder_paths, "output_directory", str(folder))
    return folder


@pytest.fixture
def save(comfy_host):
    return lambda prefix: comfy_host.module("nodes.host.files").save_safetensors(prefix, {"a": torch.zeros(2)}, {})


def the_host_saves(comfy_host, output, prefix):
    """Whether the host's own way of saving takes a prefix."""
    try:
        folder, name, counter, _, _ = comfy_host.folder_paths.get_save_image_path(prefix, str(output))
        path = Path(folder, f"{name}_{counter:05}_.safetensors")
        path.touch()
        path.unlink()
    except Exception:  # the host raises Exception itself, the disk OSError, an encoding UnicodeEncodeError
        return False
    return True


def link_elsewhere(output):
    (output.parent / "elsewhere").mkdir()
    (output / "linked").symlink_to(output.parent / "elsewhere")


def link_inside(output):
    (output / "real").mkdir()
    (output / "linked").symlink_to(output / "real")


def a_file(output):
    (output / "taken").touch()


def a_link_to_itself(output):
    (output / "loop").symlink_to(output / "loop")


CASES = {
    "as long as can be": ("x" * MOST, None, True),
    "one letter more": ("x" * (MOST + 1), None, "too long for a name: it takes 256 bytes"),
    "letters of several bytes": ("\u72ac" * 79, None, "too long for a name"),
    "letters of several bytes that fit": ("\u72ac" * 78, None, True),
    "as long as can be in a folder": ("a/" + "x" * MOST, None, True),
    "a long folder": ("x" * 255 + "/a", None, True),
    "a longer folder": ("x" * 256 + "/a", None, "too long for a name"),
    "long with variables": ("x" * (MOST - 4) + "%year%", None, True),
    "too long with variables": ("x" * (MOST - 3) + "%year%", None, "too long for a name"),
    "no encoding": ("bad\udcff\ud800", None, "which no file name can hold"),
    "a zero": ("a\0b", None, "which no file name can hold"),
    "a link to elsewhere": ("linked/a", link_elsewhere, "is a link to .*elsewhere"),
    "a link to elsewhere and on": ("linked/b/a", link_elsewhere, "is a link to .*elsewhere"),
    "a link inside": ("linked/a", link_inside, True),
    "a file as a folder": ("taken/a", a_file, "'taken' as a folder, and that is a file"),
    "a file above": ("taken/b/a", a_file, "'taken' as a folder, and that is a file"),
    "a link to itself": ("loop/a", a_link_to_itself, "loop"),
    "above": ("../a", None, "outside the output folder"),
    "a path of the system": ("/elsewhere/a", None, "outside the output folder"),
    "nothing": ("  ", None, "file name is empty"),
    "a folder alone": ("a/..", None, "file name is empty|outside"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_is_said_before_the_run_is_what_the_host_does(comfy_host, output, save, case):
    prefix, prepare, expected = CASES[case]
    if prepare:
        prepare(output)
    said = {comfy_host.validate(node, filename_prefix=prefix) for node in SAVERS}
    assert len(said) == 1
    (said,) = said
    if expected is True:
        assert said is True and the_host_saves(comfy_host, output, prefix)
        path = save(prefix)
        assert path.is_file() and [p for p in path.parent.iterdir() if p.name.startswith(".")] == []
        return
    before = sorted(output.rglob("*"))
    with pytest.raises(ValueError, match=expected):
        raise ValueError(said)
    with pytest.raises(ValueError, match=expected):
        save(prefix)
    assert sorted(output.rglob("*")) == before
    # Of these the host makes something, and nobody can mean it.
    assert len(said) < 500
    if case not in ("nothing", "a folder alone"):
        assert not the_host_saves(comfy_host, output, prefix)


def test_separators_of_windows(comfy_host, output, save):
    """A workflow of a Windows machine saves into the same folders here."""
    assert comfy_host.validate("MACE_SaveErasedModel", filename_prefix=r"checkpoints\new\erased") is True
    assert save(r"checkpoints\new\erased") == output / "checkpoints/new/erased_00001_.safetensors"
    for prefix in (r"..\erased", r"C:\models\erased", "C:/models/erased", r"\\server\share\erased"):
        assert "outside the output folder" in comfy_host.validate("MACE_SaveErasedModel", filename_prefix=prefix)


def test_folders_that_may_not_be_written(comfy_host, output, monkeypatch):
    access = os.access
    # As root, who runs these tests in containers, may write all.
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != str(output) and access(path, mode))
    assert "may not be written to" in comfy_host.validate("MACE_SavePrior", filename_prefix="new/folder/a")


def test_other_errors_than_a_full_disk_are_told_as_they_are(comfy_host, output, save, monkeypatch):
    files = comfy_host.module("nodes.host.files")

    def refuse(error):
        def save_file(*_, **__):
            raise error

        monkeypatch.setattr(files, "save_file", save_file)
        with pytest.raises(OSError, match="could not write to") as raised:
            save("new/a")
        assert not list(output.iterdir())
        return str(raised.value)

    from safetensors import SafetensorError

    for error in (OSError(28, "No space left on device"), SafetensorError("I/O error: File too large (os error 27)")):
        assert refuse(error).endswith("Is the disk full?")
    for error in (
        SafetensorError("I/O error: Permission denied (os error 13)"),
        PermissionError(13, "Permission denied"),
        UnicodeEncodeError("utf-8", "\udcff", 0, 1, "surrogates not allowed"),
        ValueError("something else"),
    ):
        assert "disk full" not in refuse(error)


def test_peft_folders_have_the_longest_names_too(comfy_host, output):
    files = comfy_host.module("nodes.host.files")
    path = files.save_folder("x" * MOST, "adapter.safetensors", {"a": torch.zeros(2)}, {}, {"c.json": "{}"})
    assert path.is_dir() and path.name == "x" * MOST + "_00001_"
