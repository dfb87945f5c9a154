"""What the registry archive holds: all that the pack needs, and nothing that a scanner of packs would stop at."""

import ast
import json
import re
import zipfile
from pathlib import Path

import pytest

from tests.archive import REPO, build_archive
from tests.scan import page_findings, python_findings


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


def test_what_the_readme_shows_is_there(archive):
    shown = re.findall(r"!\[[^]]*\]\(([^)]+)\)", archive["README.md"].decode())
    assert "assets/banner.png" in shown and set(shown) <= set(archive)


def python_of(archive):
    """{file: what it has no business with} of those that have any."""
    sources = {name: text for name, text in archive.items() if name.endswith(".py")}
    return {name: found for name, text in sources.items() if (found := list(python_findings(name, text)))}


# Reads tensors alone, which the test below looks at.
WEIGHTS = "nodes/host/detectors/weights.py"


def test_python_starts_no_process_reads_no_pickle_and_opens_no_connection(archive):
    assert python_of(archive) == {WEIGHTS: ["torch.load"]}
    loads = [node for node in ast.walk(ast.parse(archive[WEIGHTS])) if isinstance(node, ast.Call)]
    (load,) = [node for node in loads if ast.unparse(node.func) == "torch.load"]
    assert {word.arg: ast.unparse(word.value) for word in load.keywords}["weights_only"] == "True"


def test_the_page_asks_its_own_server_alone(archive):
    sources = {name: text.decode() for name, text in archive.items() if name.endswith(".js")}
    assert {name: found for name, text in sources.items() if (found := page_findings(text))} == {}
    registered = [name for name, text in sources.items() for _ in range(text.count("registerExtension"))]
    assert registered == ["web/mace.js"]


@pytest.mark.parametrize(
    "line",
    [
        "import subprocess",
        "import multiprocessing",
        "import joblib",
        "import pandas",
        "import huggingface_hub",
        "import aiohttp\naiohttp.ClientSession()",
        "import os as o",
        "import torch as T\nT.load('x')",
        "import numpy as n",
        "import torch.hub",
        "import torch.multiprocessing",
        "from urllib import request",
        "from aiohttp import ClientSession",
        "from os import system",
        "from torch import load",
        "from torch import hub",
        "from torch.hub import load_state_dict_from_url",
        "from torch.utils import cpp_extension",
        "from torch.utils.cpp_extension import load",
        "from importlib import import_module",
        "from yaml import unsafe_load",
        "from numpy import load",
        "from os import *",
        "import os\nos.system('ls')",
        "import os\nos.execvp('ls', ['ls'])",
        "import os\nos.fork()",
        "import os\nos.posix_spawn('ls', [], {})",
        "import os\ngetattr(os, 'system')('ls')",
        "import os\nrun = os",
        "import asyncio\nasyncio.create_subprocess_exec('ls')",
        "import asyncio\nasyncio.open_connection('x.y', 80)",
        "import numpy as np\nnp.load('x.npy', allow_pickle=True)",
        "import numpy\nnumpy.load('x.npy')",
        "import importlib\nimportlib.import_module('subprocess')",
        "import yaml\nyaml.unsafe_load('x')",
        "import yaml\nyaml.load('x', yaml.Loader)",
        "import torch\ntorch.load('x')",
        "import torch\ntorch.hub.load('x', 'y')",
        "import torch\ngetattr(torch, 'load')('x')",
        "load('x', trust_remote_code=True)",
        "eval('1')",
        "run = exec",
        "__import__('subprocess')",
        "().__class__.__base__.__subclasses__()",
    ],
)
def test_what_the_scan_of_python_finds(line):
    assert list(python_findings("nodes/x.py", line))


@pytest.mark.parametrize(
    "line",
    [
        "fetch('/x');",
        "window.fetch('/x');",
        "window['fetch']('/x');",
        "globalThis [name]('/x');",
        "new EventSource('/x');",
        "new Image().src = '//x.y/a.png';",
        "image.src = '//x.y/a.png';",
        "import('//x.y/a.js');",
        "import a from 'https://x.y/a.js';",
        'import { a } from "lib";',
        "export * from 'lib';",
        "document.write('x');",
        "node.innerHTML = text;",
        "new WebSocket('/x');",
        "new Function('x');",
        "navigator.sendBeacon('/x');",
        "location.href = '/x';",
        "const run = eval;",
        "after(nodeType.prototype, 'onExecuted', draw);",
        "Object.getPrototypeOf(node).onExecuted = draw;",
        "beforeRegisterNodeDef(nodeType) {}",
    ],
)
def test_what_the_scan_of_the_page_finds(line):
    assert page_findings(line)


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


def test_with_the_erasure_bypassed_a_template_draws_the_prompt_of_its_first_word(archive):
    """The page then takes what stands on the nodes themselves in place of what Erase Concepts gives them."""
    for name in (name for name in archive if name.startswith("example_workflows/") and name.endswith("json")):
        workflow = json.loads(archive[name])
        erase = next(node for node in workflow["nodes"] if node["type"] == "MACE_EraseConcepts")
        given = {link: output["name"] for output in erase["outputs"] for link in output["links"]}
        values = {}
        for node in workflow["nodes"]:
            slots = [slot for slot in node["inputs"] if "widget" in slot]
            for slot, value in zip(slots, node.get("widgets_values") or (), strict=False):
                values[given.get(slot["link"])] = value
        word = re.match(r"[\w ]+?(?= *(->|\||$))", erase["widgets_values"][6], re.MULTILINE)[0]
        assert values["prompt"] == erase["widgets_values"][9].replace("{}", word)
        assert values["width"] == values["height"] == 512 and "bypass Erase Concepts" in archive[name].decode()
