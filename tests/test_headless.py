"""The headless commands on the demo model: the graph's result to the bit, stopping, going on, every command's file."""

import json
import signal
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from devtools.cache import REPO
from headless.progress import Lines

pytestmark = pytest.mark.host

pytest_plugins = ["tests.headless_runs"]

STEPS = 4
SMALL = ("--width", 64, "--height", 64)
# Of the training images.
FEW = (*SMALL, "--images", 2, "--image-steps", 2, "--seed", 3)


def tensors(path) -> dict[str, torch.Tensor]:
    with safe_open(path, "pt") as opened:
        return {key: opened.get_tensor(key) for key in opened.keys()}


def same(first, second) -> bool:
    first, second = tensors(first), tensors(second)
    assert list(first) == list(second)
    return all(torch.equal(own, second[key]) and own.dtype == second[key].dtype for key, own in first.items())


def settings_of(path) -> dict:
    with safe_open(path, "pt") as opened:
        return json.loads(opened.metadata()["mace.provenance"])


@pytest.fixture
def short(comfy_host, monkeypatch):
    """A preset that trains a few steps on few pictures, for time."""
    erasing, presets = (comfy_host.module(name) for name in ("nodes.stages.erasing", "mace.presets.presets"))
    chosen = presets.Preset(lambda type: presets.LoraRow(2, STEPS, 3e-3))
    monkeypatch.setitem(presets.PRESETS, presets.PAPER, chosen)
    monkeypatch.setattr(erasing, "IMAGES", 2)
    monkeypatch.setattr(erasing, "SAMPLING", {**erasing.SAMPLING, "steps": 2})


@pytest.fixture
def queue(comfy_host):
    """Queues a graph in the host itself: its own server object and executor."""
    import asyncio

    import execution
    from server import PromptServer

    loop = asyncio.new_event_loop()
    executor = execution.PromptExecutor(
        PromptServer(loop), execution.CacheType.CLASSIC, {"lru": 0, "ram": 0, "ram_inactive": 0}
    )

    def run(graph: dict) -> None:
        outputs = [name for name, entry in graph.items() if entry["class_type"].startswith("MACE_Save")]
        executor.execute(graph, "graph", {}, outputs)
        assert executor.success, executor.status_messages

    yield run
    del PromptServer.instance
    loop.close()


@pytest.fixture
def lines_of(tmp_path):
    """A list of concepts in a file."""

    def write(text: str, name: str = "list.txt") -> Path:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path / name

    return write


def node(kind: str, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


def test_an_erasure_is_the_graphs_to_the_bit(comfy_host, headless, queue, short, lines_of, tmp_path):
    """The graph in the host's own executor, and the command: the saved checkpoints and LoRAs, tensor by tensor."""
    text, strengths = "dog | hound -> sky\nship", ("dog = 0.5", "* = 1")
    graph = {
        "load": node("CheckpointLoaderSimple", ckpt_name="mace_demo.safetensors"),
        "concepts": node("MACE_Concepts", concepts=text, type="object", preset="none", prompt_file="none"),
        "erase": node(
            "MACE_EraseConcepts", model=["load", 0], clip=["load", 1], vae=["load", 2], concepts=["concepts", 0],
            preset="paper (Table 10)", width=64, height=64, seed=3, strengths="\n".join(strengths),
        ),
        "save": node(
            "MACE_SaveErasedModel", model=["erase", 0], clip=["load", 1], vae=["load", 2],
            filename_prefix="checkpoints/graph", dtype="fp16",
        ),
        "save_loras": node(
            "MACE_SaveLoras", loras=["erase", 1], filename_prefix="mace_loras/graph", format="set (MACE)", moments=False
        ),
    }  # fmt: skip
    queue(graph)
    output = comfy_host.base / "output"
    expected = output / "checkpoints/graph_00001_.safetensors"
    loras = output / "mace_loras/graph_00001_.safetensors"

    # What was trained is in memory and on disk now: it is trained once more.
    comfy_host.module("nodes.stages.trainer")._store.clear()
    for path in (comfy_host.base / "user/mace/loras").glob("*"):
        path.unlink()
    report = headless(
        "erase", "--model", "mace_demo.safetensors", "--concepts", lines_of(text), "--strengths", *strengths, *SMALL,
        "--seed", 3, "--preset", "paper", "--dtype", "fp16", "--out", tmp_path / "out.safetensors",
        "--loras", tmp_path / "set.safetensors", "--lora", tmp_path / "change.safetensors", "--rank", 4,
    )  # fmt: skip
    assert report["status"] == "done", report.get("error")
    assert "2 LoRAs trained, 0 of 2 kept from before" in "\n".join(stage_of(report, "MACE_EraseConcepts")["text"])
    assert same(tmp_path / "out.safetensors", expected) and same(tmp_path / "set.safetensors", loras)
    assert not same(tmp_path / "out.safetensors", output_of_base(comfy_host, tmp_path))
    mine, graphs = settings_of(tmp_path / "out.safetensors"), settings_of(expected)
    assert mine == graphs and mine["stages"]
    # kohya's names, as A1111 and Forge read them.
    assert all(key.startswith("lora_unet_") for key in tensors(tmp_path / "change.safetensors"))
    assert set(report["files"]) == {"out", "loras", "lora"}
    assert report["concepts"][0] == {"target": "dog", "mapping": "sky", "type": "object", "aliases": ["hound"]}
    assert {path.name for path in tmp_path.iterdir()} == {
        "list.txt", "out.safetensors", "set.safetensors", "change.safetensors", "base",
    }  # fmt: skip


def output_of_base(comfy_host, tmp_path) -> Path:
    """The demo checkpoint as the pack saves it, without an erasure."""
    model, clip, vae = comfy_host.load_checkpoint(comfy_host.demo_checkpoint)
    before = comfy_host.folder_paths.get_output_directory()
    comfy_host.folder_paths.set_output_directory(str(tmp_path / "base"))
    try:
        comfy_host.run("MACE_SaveErasedModel", model=model, clip=clip, vae=vae, filename_prefix="base", dtype="fp16")
    finally:
        comfy_host.folder_paths.set_output_directory(before)
    return tmp_path / "base/base_00001_.safetensors"


def stage_of(report: dict, node: str) -> dict:
    return next(stage for stage in report["stages"] if stage["node"] == node)


def test_a_stopped_training_goes_on_and_ends_as_if_it_had_not_been(
    comfy_host, headless, lines_of, tmp_path, monkeypatch
):
    """Ctrl-C in the middle: exit code 130, no file, and the next run goes on from that step."""
    given = (
        "train", "--model", comfy_host.demo_checkpoint, "--concepts", lines_of("frog -> sky"), *FEW, "--steps", 30,
        "--rank", 2, "--out", tmp_path / "set.safetensors",
    )  # fmt: skip
    say = Lines.say

    def stop(self, text):
        say(self, text)
        if "step 27 of 30" in text:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Lines, "say", stop)
    # Every step is said, however quick it is.
    monkeypatch.setattr(comfy_host.module("nodes.host.progress"), "EVERY_SECONDS", 0)
    handlers = signal.getsignal(signal.SIGINT)
    report = headless(*given, "--json-progress")
    assert (report["exit_code"], report["status"], report["error"]) == (130, "stopped", "stopped")
    assert [path.name for path in tmp_path.iterdir()] == ["list.txt"] and report["files"] == {}
    assert signal.getsignal(signal.SIGINT) is handlers
    events = [line["event"] for line in headless.lines]
    assert events[0] == "stage" and {"progress", "text"} <= set(events)

    monkeypatch.setattr(Lines, "say", say)
    done = headless(*given, "--json-progress")
    assert done["status"] == "done"
    assert "1 go on from step 27" in stage_of(done, "MACE_TrainErasureLora")["text"]
    again = [*given[:-1], tmp_path / "again.safetensors", "--again"]
    assert headless(*again)["status"] == "done"
    assert same(tmp_path / "set.safetensors", tmp_path / "again.safetensors")


def test_what_goes_wrong_on_the_way_leaves_nothing(comfy_host, headless, lines_of, tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise OSError("no space left on device")

    monkeypatch.setattr(comfy_host.module("nodes.host.files"), "save_file", full)
    given = ("--model", comfy_host.demo_checkpoint, "--count", 2, "--out", tmp_path / "o.safetensors")
    report = headless("prior", *given, "--concepts", lines_of("dog"))
    assert (report["exit_code"], report["status"]) == (1, "failed") and "no space left" in report["error"]
    assert [path.name for path in tmp_path.iterdir()] == ["list.txt"]


def test_a_prior_a_refinement_a_training_and_a_fusion(comfy_host, headless, lines_of, tmp_path):
    """Each command reads what another wrote."""
    (tmp_path / "captions.txt").write_text("a cat on a mat\na red rose\na dog in a park\n")
    model = ("--model", comfy_host.demo_checkpoint)
    prior, loras, out = (tmp_path / f"{name}.safetensors" for name in ("prior", "set", "out"))
    report = headless(
        "prior",
        *model,
        "--captions",
        tmp_path / "captions.txt",
        "--preserve",
        lines_of("wolf", "keep.txt"),
        "--out",
        prior,
    )
    assert report["status"] == "done" and "3 captions (captions.txt)" in stage_of(report, "MACE_Prior")["text"][0]
    report = headless(
        "refine", *model, "--concepts", lines_of("cow"), "--prior", prior, "--lambda1", "1e-4", "--strength", 0.5,
        "--out", tmp_path / "refined.safetensors",
    )  # fmt: skip
    assert report["status"] == "done" and report["stages"][0]["node"] == "MACE_LoadPrior"
    assert settings_of(tmp_path / "refined.safetensors")["stages"][0]["strength"] == 0.5
    report = headless(
        "train", *model, "--concepts", lines_of("cow"), *FEW, "--steps", 2, "--prior", prior, "--masks", "whole",
        "--moments", "--preset", "demo model", "--out", loras,
    )  # fmt: skip
    assert report["status"] == "done", report.get("error")
    assert stage_of(report, "MACE_CFRRefine")["text"][0] == "auto: demo model (mace_demo)"
    report = headless("fuse", *model, "--loras", loras, "--strengths", "cow = 0.5", "--out", out, "--verbose")
    assert report["status"] == "done", report.get("error")

    said = "\n".join(stage_of(report, "MACE_FuseLoras")["text"])
    assert "1 concepts, 1 LoRAs" in said and "strengths below 1: cow 0.5" in said
    assert not same(out, tmp_path / "refined.safetensors")


def test_an_evaluation(comfy_host, headless, lines_of, tmp_path):
    report = headless(
        "evaluate", "--model", comfy_host.demo_checkpoint, "--erased", comfy_host.demo_checkpoint,
        "--concepts", lines_of("dog"), "--keep", lines_of("cat", "keep.txt"), *SMALL, "--steps", 2, "--seeds", 1,
        "--judge", "classifier", "--judge-file", REPO / "assets/demo/judge.safetensors", "--sheet", tmp_path / "s.png",
    )  # fmt: skip
    assert report["status"] == "done", report.get("error")
    assert report["results"]["same model"] and report["results"]["top-1"]["Acc_s"]
    assert (tmp_path / "s.png").read_bytes()[:4] == b"\x89PNG" and report["table"][0].startswith("judge: ")


@pytest.mark.parametrize(
    "more, said",
    [
        (("--model", "nowhere.safetensors"), "--model: there is no file nowhere.safetensors, and none of that name in"),
        (("--preset", "mace"), "preset: 'mace' is "),
        (("--gentle-strong", 2), "gentle_strong: 2.0 is not within -1.0 and 1.0"),
        (("--clip-type", "sd9"), "--clip-type: 'sd9' is none of stable_diffusion"),
        (("--lora-format", "PEFT"), "--lora-format: PEFT is a folder"),
    ],
)
def test_settings_are_checked_before_a_model_is_opened(
    comfy_host, headless, lines_of, tmp_path, monkeypatch, more, said
):
    monkeypatch.setattr("headless.commands.load", None)
    given = ("--model", comfy_host.demo_checkpoint, "--concepts", lines_of("dog"), "--out", tmp_path / "o.safetensors")
    report = headless("erase", *given, *more)
    assert report["exit_code"] == 2 and said in report["error"]


def test_an_estimate_alone(comfy_host, headless, short, lines_of, tmp_path):
    report = headless(
        "erase", "--model", comfy_host.demo_checkpoint, "--concepts", lines_of("a teapot"), *SMALL, "--estimate-only",
        "--out", tmp_path / "o.safetensors", "--json-progress",
    )  # fmt: skip
    assert report["status"] == "done" and report["files"] == {}
    assert "1 of 1 concepts are new" in report["estimate"]["lines"][0]
    estimate = next(line for line in headless.lines if line["event"] == "estimate")
    assert estimate["seconds"] == report["estimate"]["seconds"] and estimate["seconds"]["training"] > 0
    assert "MACE_EraseConcepts" not in [stage["node"] for stage in report["stages"]]


def test_a_file_that_is_no_model(comfy_host, headless, lines_of, tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(2)}, tmp_path / "no.safetensors")
    report = headless(
        "refine",
        "--model",
        tmp_path / "no.safetensors",
        "--concepts",
        lines_of("dog"),
        "--out",
        tmp_path / "o.safetensors",
    )
    assert report["exit_code"] == 2 and report["error"].startswith("no.safetensors: ")


def test_a_diffusion_model_with_a_text_encoder_beside_it(comfy_host, headless, lines_of, tmp_path):
    """What is read as a diffusion model is written as one, refined as in its checkpoint; a missing --clip is said."""
    from safetensors.torch import save_file

    whole = tensors(comfy_host.demo_checkpoint)
    for name, prefix in (("unet", "model.diffusion_model."), ("clip", "cond_stage_model.transformer.")):
        own = {key.removeprefix(prefix): tensor for key, tensor in whole.items() if key.startswith(prefix)}
        save_file(own, tmp_path / f"{name}.safetensors")
    out, checkpoint = tmp_path / "out.safetensors", tmp_path / "checkpoint.safetensors"
    given = ("--concepts", lines_of("dog"), "--dtype", "fp32")
    alone = ("refine", "--model", tmp_path / "unet.safetensors", *given, "--out", out)
    report = headless(*alone)
    assert report["exit_code"] == 2
    assert report["error"].startswith("unet.safetensors holds no text encoder: name its files with --clip")
    report = headless(*alone, "--clip", tmp_path / "clip.safetensors")
    assert report["status"] == "done", report.get("error")
    assert headless("refine", "--model", comfy_host.demo_checkpoint, *given, "--out", checkpoint)["status"] == "done"
    found, expected = tensors(out), tensors(checkpoint)
    changed = 0
    for key, tensor in found.items():
        assert torch.allclose(tensor, expected[f"model.diffusion_model.{key}"], rtol=0, atol=1e-4), key
        changed += not torch.equal(tensor, whole[f"model.diffusion_model.{key}"].float())
    assert changed == 8
