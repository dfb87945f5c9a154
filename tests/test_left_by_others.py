"""What others left in the host's folders and in folder_paths costs no node."""

import asyncio
import json
import os

import pytest

pytestmark = pytest.mark.host

OURS = ("mace_priors", "mace_loras", "mace_judges", "mace_presets")
KINDS = (*OURS, "loras", "sams", "grounding-dino", "groundingdino", "clip_vision")
ODD = {
    "none": lambda path, known: None,
    "only the folders": lambda path, known: [path],
    "no endings": lambda path, known: ([path],),
    "three parts": lambda path, known: ([path], known, "mine"),
    "a text": lambda path, known: (path, known),
    "a path": lambda path, known: ([os.fspath(path), None, 3], known),
    "folders that cannot grow": lambda path, known: ((path,), known),
    "endings that cannot grow": lambda path, known: ([path], list(known)),
    "a number": lambda path, known: 7,
    "numbers": lambda path, known: (7, 7),
}


@pytest.fixture
def odd_entry(comfy_host, monkeypatch):
    """Puts another pack's entry into folder_paths, for this test."""
    folder_paths = comfy_host.folder_paths
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", dict(folder_paths.folder_names_and_paths))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    folders = comfy_host.module("nodes.host.folders")
    monkeypatch.setattr(folders, "_beside", {})
    monkeypatch.setattr(folders, "_said", set())

    def put(kind, value):
        folder_paths.folder_names_and_paths[kind] = value

    return put


def load(comfy_host):
    """What the host does with the pack at its start: on_load, then every node's schema. {node id: schema}."""
    extension = comfy_host.module("nodes").MaceExtension()
    asyncio.run(extension.on_load())
    nodes = asyncio.run(extension.get_node_list())
    return {schema.node_id: schema for schema in (node.define_schema() for node in nodes)}


def options(schema, name):
    return next(given.options for given in schema.inputs if given.id == name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("odd", ODD)
def test_odd_entries_in_folder_paths(comfy_host, odd_entry, tmp_path, kind, odd):
    (tmp_path / "mine.safetensors").touch()
    odd_entry(kind, ODD[odd](str(tmp_path), {".safetensors"}))
    schemas = load(comfy_host)
    assert set(schemas) == set(comfy_host.node_classes)
    if odd in ("none", "a number", "numbers"):
        return
    # What can be read of the entry is.
    lists = {
        "mace_priors": ("MACE_LoadPrior", "prior_name"),
        "mace_loras": ("MACE_LoadLoras", "loras_name"),
        "mace_judges": ("MACE_EvaluateErasure", "judge_file"),
        "loras": ("MACE_ImportLora", "lora_name"),
    }
    if kind in lists:
        node, name = lists[kind]
        assert "mine.safetensors" in options(schemas[node], name)
        path = comfy_host.module("nodes.host.folders").path_of(kind, "mine.safetensors")
        assert path == str(tmp_path / "mine.safetensors")


@pytest.mark.parametrize("odd", ["none", "folders that cannot grow", "a number"])
def test_own_folders_are_looked_in_beside_an_odd_entry(comfy_host, odd_entry, tmp_path, monkeypatch, caplog, odd):
    monkeypatch.setattr(comfy_host.folder_paths, "models_dir", str(tmp_path))
    monkeypatch.setattr(comfy_host.folder_paths, "output_directory", str(tmp_path / "output"))
    for kind, name in (("mace_loras", "mine.safetensors"), ("sams", "sam_vit_b.pth")):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / name).touch()
        (tmp_path / kind / "notes.txt").touch()
        odd_entry(kind, value := ODD[odd](str(tmp_path / "other"), {".safetensors"}))
    for _ in range(2):
        assert options(load(comfy_host)["MACE_LoadLoras"], "loras_name") == ["mine.safetensors"]
    tools = comfy_host.module("nodes.host.detectors.tools")
    assert "sam_vit_b.pth" in tools.segmenter_names(tools.GROUNDED)
    assert comfy_host.folder_paths.folder_names_and_paths["sams"] == value
    assert sum("the entry 'sams'" in line for line in caplog.messages) == 1


def odd_input(folder, case):
    """Puts something odd into a folder and gives its name."""
    path = folder / f"odd {case}.txt"
    if case == "a link to itself":
        path.symlink_to(path)
    elif case == "a circle":
        path.symlink_to(folder / "other.txt")
        (folder / "other.txt").symlink_to(path)
    elif case == "a link to nothing":
        path.symlink_to(folder / "gone")
    elif case == "a folder":
        path.mkdir()
    elif case == "a pipe":
        os.mkfifo(path)
    elif case == "a name of no encoding":
        path = folder / os.fsdecode(b"odd \xff.txt")
        path.touch()
    return path.name


INPUTS = ["a link to itself", "a circle", "a link to nothing", "a folder", "a pipe", "a name of no encoding"]


@pytest.mark.parametrize("case", INPUTS)
def test_odd_things_in_input(comfy_host, monkeypatch, tmp_path, case):
    monkeypatch.setattr(comfy_host.folder_paths, "input_directory", str(tmp_path))
    (tmp_path / "fine.txt").touch()
    name = odd_input(tmp_path, case)
    schemas = load(comfy_host)
    for node, field in (("MACE_Concepts", "prompt_file"), ("MACE_Prior", "captions"), ("MACE_BaselineOCE", "captions")):
        shown = options(schemas[node], field)
        assert "fine.txt" in shown and (name in shown) == (case == "a name of no encoding")
    # Asked for all the same, by a workflow made elsewhere.
    for node, field in (("MACE_Concepts", "prompt_file"), ("MACE_Prior", "captions")):
        comfy_host.node_classes[node].fingerprint_inputs(**{field: name})


NAMES = ["../../etc/passwd", "a\0b.txt", "\udcff.txt", "x" * 5000, "/", ".", 5, ["a", 0], None]


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_fingerprints_of_names_that_are_no_files(comfy_host, name):
    for node, field in (
        ("MACE_Concepts", "prompt_file"),
        ("MACE_Prior", "captions"),
        ("MACE_LoadPrior", "prior_name"),
        ("MACE_LoadLoras", "loras_name"),
        ("MACE_ImportLora", "lora_name"),
        ("MACE_EvaluateErasure", "judge_file"),
    ):
        comfy_host.node_classes[node].fingerprint_inputs(**{field: name})
    said = comfy_host.validate("MACE_EvaluateErasure", judge="classifier file", judge_file=name)
    assert said is True or "judge_file" in said


@pytest.mark.parametrize("kind", ["input", *KINDS])
def test_a_folder_that_may_not_be_read(comfy_host, odd_entry, monkeypatch, tmp_path, kind):
    # As root, who runs these tests in containers, may read all.
    scandir = os.scandir

    def refuse(path="."):
        if str(path) == str(tmp_path):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    if kind == "input":
        monkeypatch.setattr(comfy_host.folder_paths, "input_directory", str(tmp_path))
    else:
        odd_entry(kind, ([str(tmp_path)], {".safetensors"}))
    assert set(load(comfy_host)) == set(comfy_host.node_classes)


CONFIGS = {
    "nested": b"[" * 200_000,
    "nested settings": b'{"a":' * 200_000 + b"1" + b"}" * 200_000,
    "no text": b"\xff\xfe\x00\x01",
    "empty": b"",
    "null": b"null",
    "a list": b'["sam"]',
    "an odd type": b'{"model_type": ["sam"]}',
    "a long number": b'{"model_type": ' + b"9" * 10_000 + b"}",
    "another type": b'{"model_type": "llama"}',
}


@pytest.mark.parametrize("case", [*CONFIGS, "a link to itself", "a folder", "a pipe", "too large"])
def test_odd_configs_of_models(comfy_host, odd_entry, tmp_path, case):
    for name in ("aaa", "zzz"):
        (tmp_path / name).mkdir()
    odd = tmp_path / "aaa/config.json"
    if case == "a link to itself":
        odd.symlink_to(odd)
    elif case == "a folder":
        odd.mkdir()
    elif case == "a pipe":
        os.mkfifo(odd)
    elif case == "too large":
        with open(odd, "wb") as sparse:
            sparse.truncate(1 << 36)
    else:
        odd.write_bytes(CONFIGS[case])
    (tmp_path / "zzz/config.json").write_text(json.dumps({"model_type": "sam"}))
    for kind in ("sams", "grounding-dino", "clip_vision", "mace_judges"):
        odd_entry(kind, ([str(tmp_path)], set()))
    assert set(load(comfy_host)) == set(comfy_host.node_classes)
    tools = comfy_host.module("nodes.host.detectors.tools")
    assert tools.segmenter_names(tools.TRANSFORMERS)[2:] == ["zzz"]
    found = comfy_host.module("nodes.host.detectors.transformers_models")
    if found.missing() is None:
        for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
            if not (tmp_path / "aaa" / name).exists() and not (tmp_path / "aaa" / name).is_symlink():
                (tmp_path / "aaa" / name).touch()
        with pytest.raises(ValueError, match="cannot be read|lacks|of the type"):
            found.load_segmenter(tmp_path / "aaa")
