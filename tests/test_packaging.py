"""What the pack says of itself: version, installation report, what the registry archive leaves out."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import mace

REPO = Path(__file__).resolve().parent.parent


def test_one_version():
    found = re.search(r'^version = "(.+)"$', (REPO / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert found and found[1] == mace.__version__


def test_install_reports_and_changes_nothing():
    before = subprocess.run(["git", "status", "--porcelain"], cwd=REPO, capture_output=True, text=True).stdout
    run = subprocess.run([sys.executable, "-B", REPO / "install.py"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "torch" in run.stdout and "not inside ComfyUI's custom_nodes" in run.stdout
    after = subprocess.run(["git", "status", "--porcelain"], cwd=REPO, capture_output=True, text=True).stdout
    assert before == after


def test_install_tells_a_missing_package():
    """Python without site-packages has none of them."""
    run = subprocess.run([sys.executable, "-I", "-S", REPO / "install.py"], capture_output=True, text=True)
    assert run.returncode == 1
    assert "torch: missing" in run.stdout and "Not ready" in run.stdout


@pytest.mark.parametrize(
    "version, word", [("0.30.0", "0.30.0: fine"), ("1.2", "1.2: fine"), ("0.3.51", "older than 0.30")]
)
def test_install_compares_comfyui(tmp_path, version, word):
    pack = tmp_path / "custom_nodes" / "mace-comfyui"
    pack.mkdir(parents=True)
    shutil.copy(REPO / "install.py", pack)
    (tmp_path / "comfyui_version.py").write_text(f'__version__ = "{version}"\n')
    run = subprocess.run([sys.executable, "-B", pack / "install.py"], capture_output=True, text=True)
    assert run.returncode == 0 and word in run.stdout


@pytest.mark.parametrize("version", ["0.3.51", None, "0.31.0"])
def test_a_host_that_is_too_old_is_told_in_a_sentence(tmp_path, version):
    """An installation whose node API lacks what the nodes need: the pack loads without them, and says why.

    In one that is new enough the same is a fault, which is not hidden.
    """
    (tmp_path / "comfy_api").mkdir()
    (tmp_path / "comfy_api/__init__.py").touch()
    if version is not None:
        (tmp_path / "comfyui_version.py").write_text(f'__version__ = "{version}"\n')
    load = f"""
import importlib.util, sys
sys.path.insert(0, {str(tmp_path)!r})
spec = importlib.util.spec_from_file_location("pack", {str(REPO / "__init__.py")!r})
sys.modules["pack"] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
print(module.NODE_CLASS_MAPPINGS, hasattr(module, "comfy_entrypoint"))
"""
    run = subprocess.run([sys.executable, "-B", "-c", load], capture_output=True, text=True, cwd=tmp_path)
    if version == "0.31.0":
        assert run.returncode and "No module named 'comfy_api.latest'" in run.stderr
        return
    assert run.stdout.split("\n")[0] == "{} False"
    assert f"MACE needs ComfyUI 0.30 or later, and this one is {version or 'older'}" in run.stderr
    assert "Traceback" not in run.stderr and "update ComfyUI" in run.stderr


# What comfy_api.latest got over the years, and how a program takes it away again.
LACKS = {
    "MultiType": "del _io.MultiType, io.MultiType",
    "has_intermediate_output": """
made = io.Schema.__init__
def __init__(self, *given, **named):
    if "has_intermediate_output" in named:
        raise TypeError("Schema.__init__() got an unexpected keyword argument 'has_intermediate_output'")
    made(self, *given, **named)
io.Schema.__init__ = __init__
""",
}


@pytest.mark.host
# One of them each time; the others start a process each.
@pytest.mark.parametrize("lacking", [*(pytest.param(name, marks=pytest.mark.long) for name in LACKS), None])
def test_an_older_host_has_all_nodes_or_none(tmp_path, lacking):
    """The host's own loader, with an older one's version and an API from which one thing is taken."""
    host = os.environ["MACE_COMFYUI"]
    load = f"""
import sys
from pathlib import Path
sys.path.insert(1, {str(REPO)!r})
import comfy.options
sys.argv[1:] = ["--cpu"]
comfy.options.enable_args_parsing()
import comfyui_version
from comfy_api.latest import _io, io
comfyui_version.__version__ = "0.14.1"
{LACKS.get(lacking, "")}
from devtools.inprocess import InProcessHost
print(len(InProcessHost(Path({host!r}), Path({str(REPO)!r}), Path({str(tmp_path)!r}), None).node_classes))
"""
    run = subprocess.run([sys.executable, "-B", "-c", load], capture_output=True, text=True, cwd=host)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["0" if lacking else "27"] and "Traceback" not in run.stderr
    said = [line for line in run.stderr.splitlines() if "MACE needs ComfyUI 0.30 or later" in line]
    assert len(said) == (1 if lacking else 0)
    assert not lacking or ("this one is 0.14.1 (" in said[0] and lacking in said[0])


def test_install_is_standard_library_only_and_offline():
    source = (REPO / "install.py").read_text(encoding="utf-8")
    imported = set(re.findall(r"^(?:import|from) (\w+)", source, re.MULTILINE))
    assert imported <= {"importlib", "json", "os", "sys", "pathlib"}


def mask_lines(tmp_path, *names, types=None, bare=False):
    """What install.py says of Mask Concept's back-ends, by back-end.

    names: files to add to models/.  types: of folders in models/ that get a config.json, the model's type.
    """
    pack = tmp_path / "custom_nodes" / "mace-comfyui"
    pack.mkdir(parents=True, exist_ok=True)
    shutil.copy(REPO / "install.py", pack)
    (tmp_path / "comfyui_version.py").write_text('__version__ = "0.30.0"\n')
    texts = dict.fromkeys(names, "")
    texts |= {f"{folder}/config.json": json.dumps({"model_type": kind}) for folder, kind in (types or {}).items()}
    for name, text in texts.items():
        path = tmp_path / "models" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    isolated = ["-I", "-S"] if bare else []
    run = subprocess.run([sys.executable, "-B", *isolated, pack / "install.py"], capture_output=True, text=True)
    assert "folders of extra_model_paths.yaml count in ComfyUI, and are not looked at here" in run.stdout
    return dict(line.strip().split(": ", 1) for line in run.stdout.splitlines() if line.startswith("    "))


def test_install_lists_every_back_end_with_its_next_step(tmp_path):
    first = mask_lines(tmp_path)
    assert first["attention, external mask, boxes, whole image"].startswith("ready")
    assert first["GroundingDINO + SAM"] == f"put groundingdino_swint_ogc.pth into {tmp_path}/models/grounding-dino"
    assert "put a folder such as grounding-dino-tiny" in first["transformers"]
    assert "put a SAM3 checkpoint into" in first["SAM3 Detect"]
    models = tmp_path / "models"

    # A BERT folder beside the detector is no detector.
    second = mask_lines(tmp_path, "groundingdino/swint.pth", types={"grounding-dino/bert-base-uncased": "bert"})
    assert "put a folder such as grounding-dino-tiny" in second["transformers"]
    bert = models / "grounding-dino" / "bert-base-uncased"
    expected = f"put model.safetensors or pytorch_model.bin, tokenizer.json or vocab.txt into {bert}"
    assert second["GroundingDINO + SAM"] == expected

    # A folder that is not whole is told of, unless another is.
    third = mask_lines(
        tmp_path,
        *(f"bert-base-uncased/{name}" for name in ("model.safetensors", "vocab.txt")),
        "checkpoints/sam3.safetensors",
        types={"bert-base-uncased": "bert", "grounding-dino/tiny": "grounding-dino"},
    )
    assert "put sam_vit_b_01ec64.pth into" in third["GroundingDINO + SAM"]
    assert third["transformers"].startswith("put model.safetensors or model.safetensors.index.json, preprocessor_")
    assert third["transformers"].endswith(f"into {models}/grounding-dino/tiny")

    detector = ("model.safetensors", "preprocessor_config.json", "tokenizer.json")
    fourth = mask_lines(
        tmp_path,
        *(f"grounding-dino/whole/{name}" for name in detector),
        types={"grounding-dino/whole": "mm-grounding-dino"},
    )
    assert fourth["transformers"].startswith("put a folder such as sam-vit-base")

    files = ("sams/sam_vit_b.pth", "sams/sam2/model.safetensors", "sams/sam2/processor_config.json")
    last = mask_lines(tmp_path, *files, types={"sams/sam2": "sam2_video"})
    assert {last[name] for name in ("GroundingDINO + SAM", "transformers", "SAM3 Detect")} == {"ready"}


def test_install_says_how_to_get_what_back_ends_import(tmp_path):
    lines = mask_lines(tmp_path, bare=True)
    assert "-m pip install --no-deps groundingdino-py segment-anything, then " in lines["GroundingDINO + SAM"]
    assert "-m pip install transformers, and restart ComfyUI" in lines["transformers"]


def test_the_requirements_of_masks_are_what_install_names():
    lines = (REPO / "requirements-masks.txt").read_text(encoding="utf-8").splitlines()
    named = {line for line in lines if line and not line.startswith("#")}
    source = (REPO / "install.py").read_text(encoding="utf-8")
    beside = set(re.findall(r'"\w+": "([\w-]+)"', source[source.index("BESIDE = {") : source.index("GROUNDED, ")]))
    assert beside == named | {"transformers"}


def test_developers_tools_are_left_out_of_the_archive():
    ignored = (REPO / ".comfyignore").read_text(encoding="utf-8").split()
    assert {"dev.py", "devtools/", "tests/", "assets/demo/", "benchmarks/"} <= set(ignored)
    for name in (
        "__init__.py",
        "nodes/",
        "mace/",
        "web/",
        "example_workflows/",
        "install.py",
        "README.md",
        "requirements-masks.txt",
    ):
        assert name not in ignored and (REPO / name).exists()


def test_numerics_do_not_know_the_host():
    for path in (REPO / "mace").rglob("*.py"):
        assert not re.search(r"^\s*(?:import|from) (?:comfy|folder_paths|nodes)\b", path.read_text(), re.MULTILINE)
