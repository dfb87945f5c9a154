"""The headless commands on the demo model: the graph's result to the bit, stopping and going on."""

import signal
from pathlib import Path

import pytest

from headless.progress import Lines
from tests.headless_runs import FEW, SMALL, same, settings_of, stage_of, tensors

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("few_templates")]

pytest_plugins = ["tests.headless_runs"]


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


def node(kind: str, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


def test_an_erasure_is_the_graphs_to_the_bit(comfy_host, headless, queue, short, lines_of, tmp_path):
    """The graph in the host's own executor, and the command: the saved checkpoints and LoRAs, tensor by tensor."""
    text, strengths = "dog | hound -> sky\nship -> sky", ("dog = 0.5", "* = 1")
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
    comfy_host.module("nodes.stages.trained")._store.clear()
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


@pytest.mark.long
def test_a_stopped_training_goes_on_and_ends_as_if_it_had_not_been(
    comfy_host, headless, loaded_once, lines_of, tmp_path, monkeypatch
):
    """Ctrl-C in the middle: exit code 130, no file, and the next run goes on from that step."""
    given = (
        "train", "--model", comfy_host.demo_checkpoint, "--concepts", lines_of("dog -> sky"), *FEW, "--steps", 12,
        "--rank", 2, "--out", tmp_path / "set.safetensors",
    )  # fmt: skip
    say = Lines.say

    def stop(self, text):
        say(self, text)
        if "step 9 of 12" in text:
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
    assert "1 go on from step 9" in stage_of(done, "MACE_TrainErasureLora")["text"]
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
