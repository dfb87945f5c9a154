"""The pack in the real ComfyUI server, through its HTTP API and websocket."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from devtools.client import ExecutionError, Interrupted, PromptError
from devtools.graph import to_prompt
from tests import graphs

pytestmark = pytest.mark.server

SNAPSHOT = Path(__file__).parent / "snapshots" / "object_info.json"


def latents(server, result, node_id):
    (saved,) = result.outputs[node_id]["latents"]
    return load_file(server.base_dir / "output" / saved["subfolder"] / saved["filename"])["latent_tensor"]


def saved_file(server, result, node_id):
    (saved,) = result.outputs[node_id]["checkpoints"]
    return server.base_dir / "output" / saved["subfolder"] / saved["filename"]


def recorded(key, spec):
    """A name's type and settings; the files it may name are those of the moment."""
    left_out = {"tooltip", "options"} if key in ("prior_name", "loras_name", "lora_name", "judge_file") else {"tooltip"}
    return [spec[0], {k: v for k, v in spec[1].items() if k not in left_out}]


def test_object_info_snapshot(server):
    """Every name, type, default and limit that saved workflows depend on. A wanted change is recorded by
    writing the new snapshot: delete the file and run this test once."""
    info = {name: entry for name, entry in server.client.object_info().items() if name.startswith("MACE_")}
    seen = {}
    for name, entry in sorted(info.items()):
        inputs = {
            group: {key: recorded(key, spec) for key, spec in part.items()}
            for group, part in entry["input"].items()
            if group in ("required", "optional")
        }
        seen[name] = {
            "input": inputs,
            "output": entry["output"],
            "output_name": entry["output_name"],
            "output_node": entry["output_node"],
            "display_name": entry["display_name"],
            "category": entry["category"],
        }
    if not SNAPSHOT.exists():
        SNAPSHOT.parent.mkdir(exist_ok=True)
        SNAPSHOT.write_text(json.dumps(seen, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        pytest.fail("there was no snapshot; it is written now: look it over, commit it and run again")
    assert seen == json.loads(SNAPSHOT.read_text(encoding="utf-8"))


def test_every_input_and_output_is_explained(server):
    info = {name: entry for name, entry in server.client.object_info().items() if name.startswith("MACE_")}
    assert len(info) == 27
    for name, entry in info.items():
        assert entry["description"], name
        assert entry["search_aliases"], name
        for group in ("required", "optional"):
            for key, spec in entry["input"].get(group, {}).items():
                assert spec[1].get("tooltip"), (name, key)
        assert all(entry["output_tooltips"]), name
        help_page = Path(__file__).parent.parent / "web" / "docs" / f"{name}.md"
        assert help_page.is_file(), name


def test_the_log_is_clean(server):
    log = server.log_path.read_text(encoding="utf-8", errors="replace")
    assert "Cannot import" not in log and "IMPORT FAILED" not in log
    assert "Error while calling comfy_entrypoint" not in log


def test_example_workflow_requeue_and_reload(server):
    """The shipped workflow runs, a second queue runs nothing again, and the saved checkpoint gives the same
    latents in a plain txt2img graph as the patched model does."""
    prompt = to_prompt(graphs.drawn_quickly(graphs.workflow("refine")), server.client.object_info())
    # Other tests may have queued the same workflow on this server, which would run nothing of it again.
    listed = next(node["inputs"] for node in prompt.values() if node["class_type"] == "MACE_Concepts")
    listed["concepts"] += "\n# anew"
    stages = []
    first = server.client.queue(prompt, lambda title, value, most: stages.append((title, value, most)))
    steps = [value for title, value, _ in stages if title == "CFR Refine (MACE)" and value is not None]
    assert steps == sorted(steps) and steps[-1] == 48
    (save,) = (key for key, node in prompt.items() if node["class_type"] == "MACE_SaveErasedModel")
    path = saved_file(server, first, save)
    again = server.client.queue(prompt)
    assert not set(again.executed) & set(prompt)
    assert set(again.cached) >= {key for key, node in prompt.items() if node["class_type"].startswith("MACE_")}

    (refined,) = (key for key, node in prompt.items() if node["class_type"] == "MACE_CFRRefine")
    (loader,) = (key for key, node in prompt.items() if node["class_type"] == "CheckpointLoaderSimple")
    patched = server.client.queue(graphs.sample(prompt, 100, (refined, 0), loader))
    name = path.relative_to(server.base_dir / "output" / "checkpoints").as_posix()
    plain = {"1": graphs.node("CheckpointLoaderSimple", ckpt_name=name)}
    reloaded = server.client.queue(graphs.sample(plain, 2, ("1", 0)))
    base = server.client.queue(graphs.sample(graphs.refine(), 100, ("1", 0)))
    expected = latents(server, patched, "104")
    # The patched model bakes in the same order as the saved file, but stores halves nowhere on this device.
    torch.testing.assert_close(latents(server, reloaded, "6"), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(latents(server, base, "104"), expected, atol=1e-2)


def test_saved_metadata_and_keys(server, demo_checkpoint):
    result = server.client.queue({**graphs.refine(), "4": graphs.save(dtype="fp16")}, workflow={"marker": 1})
    with (
        safe_open(saved_file(server, result, "4"), framework="pt") as saved,
        safe_open(demo_checkpoint, framework="pt") as base,
    ):
        assert set(base.keys()) <= set(saved.keys())
        assert {saved.get_tensor(k).dtype for k in saved.keys() if saved.get_tensor(k).is_floating_point()} == {
            torch.float16
        }
        metadata = saved.metadata()
    record = json.loads(metadata["mace.provenance"])
    (stage,) = record["stages"]
    assert stage["concepts"] == [
        {"target": "airplane", "mapping": "ground", "type": "object", "aliases": [], "own_prompts": []}
    ]
    assert stage["stage"] == "refinement" and stage["mu"] == 10 and stage["settings"]["lambda1"] == "auto"
    assert record["version"] and len(record["base_model_sha256"]) == 64
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1"
    assert metadata["modelspec.predict_key"] == "epsilon"
    assert json.loads(metadata["prompt"])["3"]["class_type"] == "MACE_CFRRefine"
    assert json.loads(metadata["workflow"]) == {"marker": 1}


def test_never_overwrites(server):
    graph = {**graphs.refine(), "4": graphs.save(prefix="checkpoints/twice")}
    first = saved_file(server, server.client.queue(graph), "4")
    before = first.stat().st_mtime_ns
    graph["4"]["inputs"]["dtype"] = "bf16"
    second = saved_file(server, server.client.queue(graph), "4")
    assert first != second and first.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    "graph, message",
    [
        (graphs.refine(concepts="cat\ndog -> a -> b"), "line 2: more than one '->'"),
        (graphs.refine(mu="much"), "neither auto nor a number"),
        (graphs.refine(strength=1.5), "bigger than max"),
    ],
)
def test_text_errors_stand_on_the_node_before_anything_runs(server, graph, message):
    with pytest.raises(PromptError, match=message):
        server.client.queue({**graph, "4": graphs.save()})


@pytest.mark.parametrize("prefix", ["../outside", "{elsewhere}/outside", ""])
def test_a_path_outside_the_output_folder(server, tmp_path, prefix):
    prefix = prefix.format(elsewhere=tmp_path)
    before = sorted(server.base_dir.rglob("*_0000*"))
    with pytest.raises(PromptError, match="outside the output folder|file name is empty"):
        server.client.queue({**graphs.refine(), "4": graphs.save(prefix=prefix)})
    assert sorted(server.base_dir.rglob("*_0000*")) == before
    assert not list(tmp_path.iterdir()) and not list(server.base_dir.rglob("*outside*"))


def test_a_failing_node_says_what_to_do(server):
    graph = graphs.refine(mu="auto", concepts="Claude Monet")
    graph["2"]["inputs"]["type"] = "style"
    with pytest.raises(ExecutionError, match="CFRRefine.*connect a prior"):
        server.client.queue({**graph, "4": graphs.save()})


def test_text_may_come_from_another_node(server):
    """Every text input linked: it is read when the node runs."""
    graph = graphs.refine()
    texts = {
        "20": ("2", "concepts", "airplane -> ground"),
        "21": ("3", "lambda1", "0"),
        "22": ("3", "lambda3", "auto"),
        "23": ("3", "mu", "10"),
        "24": ("4", "filename_prefix", "checkpoints/linked"),
    }
    graph["4"] = graphs.save()
    for key, (node, name, text) in texts.items():
        graph[key] = graphs.node("PrimitiveStringMultiline", value=text)
        graph[node]["inputs"][name] = [key, 0]
    result = server.client.queue(graph)
    assert saved_file(server, result, "4").name == "linked_00001_.safetensors"
    graph["20"]["inputs"]["value"] = "cat\ndog -> a -> b"
    with pytest.raises(ExecutionError, match="line 2: more than one '->'"):
        server.client.queue(graph)


@pytest.mark.long
def test_interrupt_leaves_the_host_usable(server):
    """An interrupt in the middle of the encoding ends the run; the next one is whole."""
    graph = {
        **graphs.refine(concepts="cat\nfrog", mu="3"),
        "4": graphs.save(prefix="checkpoints/cut"),
    }

    def stop(title, value, most):
        if value is not None and 0 < value < most / 2:
            server.client.interrupt()

    with pytest.raises(Interrupted):
        server.client.queue(graph, stop)
    assert not list((server.base_dir / "output" / "checkpoints").glob("*cut*"))
    result = server.client.queue(graph)
    assert saved_file(server, result, "4").is_file()
    log = server.log_path.read_text(encoding="utf-8", errors="replace")
    assert "Traceback" not in log.split("Processing interrupted")[-1]


def test_prior_is_built_saved_and_loaded(server):
    graph = {
        "1": graphs.node("CheckpointLoaderSimple", ckpt_name=graphs.CHECKPOINT),
        "2": graphs.node("MACE_Concepts", concepts="airplane", type="object", preset="none", prompt_file="none"),
        "3": graphs.node(
            "MACE_Prior",
            clip=("1", 1),
            concepts=("2", 0),
            captions="built-in",
            count=30,
            seed=1,
            preserve="ship\nrose | tulip",
            preserve_type="object",
            retention="none",
        ),
        "4": graphs.node("MACE_SavePrior", prior=("3", 0), filename_prefix="mace_priors/small"),
    }
    result = server.client.queue(graph)
    preview = result.outputs["3"]["text"][0]
    assert "3 concepts to preserve" in preview and "rose, tulip" in preview
    (path,) = result.outputs["4"]["text"]
    refine = graphs.refine(lambda1="1e-4", lambda3="1")
    refine["3"]["inputs"]["prior"] = ["5", 0]
    refine["5"] = graphs.node("MACE_LoadPrior", prior_name=Path(path).name)
    refine["6"] = graphs.save(prefix="checkpoints/with_prior")
    result = server.client.queue(refine)
    with safe_open(saved_file(server, result, "6"), framework="pt") as saved:
        stage = json.loads(saved.metadata()["mace.provenance"])["stages"][0]
    assert stage["prior"]["preserved"] == ["ship", "rose", "tulip"]
    assert stage["prior"]["captions"] <= 30
