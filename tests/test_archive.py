"""What the registry archive holds: all that the pack needs, and nothing that a scanner of packs would stop at."""

import ast
import json
import re
import zipfile
from pathlib import Path

import pytest

from tests.archive import REPO, build_archive

# A process, a pickle, a socket, another computer: none of this pack's nodes has to do with any of them.
FORBIDDEN = {"subprocess", "pickle", "cPickle", "dill", "marshal", "shelve", "socket", "ftplib", "smtplib", "telnetlib"}
FORBIDDEN |= {"urllib", "http", "requests", "httpx", "websocket", "websockets", "paramiko", "ctypes", "pip", "xmlrpc"}
FORBIDDEN |= {"ray"}
CALLS = {"eval", "exec", "compile", "__import__"}
ATTRIBUTES = {("os", "system"), ("os", "popen"), ("os", "execv"), ("os", "spawnv"), ("builtins", "eval")}
# The server's side alone: the host's own server is asked to tell when it frees memory.
SERVER = {"aiohttp": {"web"}}
ADDRESS = re.compile(r"\b(?:fetch|XMLHttpRequest|WebSocket|sendBeacon|importScripts|eval|Function)\s*\(")


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """The archive, unpacked: {name: text or None}."""
    path = build_archive(tmp_path_factory.mktemp("archive") / "node.zip")
    with zipfile.ZipFile(path) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


def test_it_holds_what_an_artist_needs_and_little_else(archive):
    needed = {"__init__.py", "install.py", "README.md", "LICENSE", "pyproject.toml", "nodes/__init__.py", "web/mace.js"}
    needed |= {"subgraphs/Erase concepts, stage by stage (MACE).json"}
    assert needed <= set(archive)
    tops = {name.split("/")[0] for name in archive}
    assert not tops & {"tests", "devtools", "benchmarks", "dev.py", "output", ".ci"}
    shown = {f"assets/{name}.{kind}" for name in ("icon", "banner") for kind in ("svg", "png")}
    assert {name for name in archive if name.startswith("assets/")} == shown
    for name in archive:
        assert not re.search(r"(^|/)(test_\w+|conftest)\.py$|\.(safetensors|ckpt|pt|pth|npz|pkl)$", name), name
    assert sum(map(len, archive.values())) < 8e6
    tracked = {
        path.relative_to(REPO).as_posix()
        for room in ("nodes", "mace", "web", "locales")
        for path in (REPO / room).rglob("*")
    }
    wanted = {
        name
        for name in tracked
        if name.endswith((".py", ".js", ".css", ".md", ".png", ".json")) and "__pycache__" not in name
    }
    assert wanted <= set(archive)


def sources(archive):
    return {name: ast.parse(text) for name, text in archive.items() if name.endswith(".py")}


def test_python_starts_no_process_reads_no_pickle_and_opens_no_connection(archive):
    found = []
    for name, tree in sources(archive).items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                found += [(name, own.name) for own in node.names if own.name.split(".")[0] in {*FORBIDDEN, *SERVER}]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                top = (node.module or "").split(".")[0]
                allowed = SERVER.get(top)
                bad = top in FORBIDDEN or allowed is not None and {own.name for own in node.names} - allowed
                found += [(name, node.module)] if bad else []
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CALLS:
                found.append((name, node.func.id))
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                found += [(name, node.attr)] if (node.value.id, node.attr) in ATTRIBUTES else []
    assert found == []


def test_torch_reads_tensors_alone(archive):
    """torch.load without weights_only would run what is in a file."""
    for name, tree in sources(archive).items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("torch.load"):
                given = {word.arg: ast.unparse(word.value) for word in node.keywords}
                assert given.get("weights_only") == "True", name


def test_the_page_asks_its_own_server_alone(archive):
    for name, text in archive.items():
        if name.endswith(".js"):
            source = text.decode()
            assert not ADDRESS.search(source) and not re.search(r"https?://", source), name
            assert not re.search(r"""import[^;]*from\s*["'](?!\.{1,2}/)""", source), name


def test_a_scanner_would_find_what_it_looks_for(archive):
    """The scan itself: each kind of thing that it must stop at."""
    for line in (
        "import subprocess",
        "from urllib import request",
        "import aiohttp",
        "from aiohttp import ClientSession",
    ):
        with pytest.raises(AssertionError):
            test_python_starts_no_process_reads_no_pickle_and_opens_no_connection({"x.py": line})
    for line in ("eval('1')", "import os\nos.system('ls')"):
        with pytest.raises(AssertionError):
            test_python_starts_no_process_reads_no_pickle_and_opens_no_connection({"x.py": line})
    with pytest.raises(AssertionError):
        test_torch_reads_tensors_alone({"x.py": "import torch\ntorch.load('a.pth')"})
    for line in (b"fetch('/x')", b"import a from 'https://x.y/a.js'"):
        with pytest.raises(AssertionError):
            test_the_page_asks_its_own_server_alone({"x.js": line})


def test_the_templates_come_with_pictures_and_need_no_file_of_ours(archive):
    names = sorted(
        Path(name).stem for name in archive if name.startswith("example_workflows/") and name.endswith("json")
    )
    assert names == ["Erase one object", "Erase several things"]
    for name in names:
        text = archive[f"example_workflows/{name}.json"].decode()
        assert archive[f"example_workflows/{name}.jpg"][:2] == b"\xff\xd8"
        assert "mace_demo" not in text and ".safetensors" not in text
        types = {node["type"] for node in json.loads(text)["nodes"]}
        assert {kind for kind in types if kind.startswith("MACE_")} == {"MACE_EraseConcepts"}
