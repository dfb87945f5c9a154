"""Training and fusing through the real server: its API, its websocket, its cache."""

import json
import time
import urllib.request

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from devtools.client import Interrupted
from devtools.graph import to_prompt
from tests import graphs
from tests.stages import FUSE, IMAGES, TRAIN

pytestmark = pytest.mark.server


def erasure(concepts="dog -> sky\nship -> sky", strengths="", train=(), **fuse) -> dict:
    """Loader 1, concepts 2, refinement 3, images 4, masks 5, training 6, fusion 7, checkpoint 8."""
    graph = graphs.refine(concepts=concepts)
    return {
        **graph,
        "4": graphs.node(
            "MACE_ConceptImages", model=("1", 0), clip=("1", 1), vae=("1", 2), concepts=("2", 0), **IMAGES
        ),
        "5": graphs.node("MACE_MaskConcept", model=("1", 0), clip=("1", 1), images=("4", 0), backend="attention"),
        "6": graphs.node(
            "MACE_TrainErasureLora",
            model=("3", 0),
            clip=("1", 1),
            images=("4", 0),
            masks=("5", 0),
            **{**TRAIN, **dict(train)},
        ),
        "7": graphs.node(
            "MACE_FuseLoras",
            model=("1", 0),
            loras=("6", 0),
            refinement=("3", 1),
            **{**FUSE, "strengths": strengths, **fuse},
        ),
        "8": graphs.save(model=("7", 0), prefix="checkpoints/fused"),
    }


def training(concepts="dog -> sky", **train) -> dict:
    """The training of that graph alone, on the model as it is, for time: no prompts are read, nothing is saved."""
    graph = erasure(concepts, train=train.items())
    graph["6"]["inputs"]["model"] = ["1", 0]
    graph["9"] = graphs.node("PreviewAny", source=("6", 3))
    return {key: node for key, node in graph.items() if key not in ("3", "7", "8")}


@pytest.mark.long
def test_a_new_strength_runs_the_fusion_alone(server):
    first = server.client.queue(erasure())
    assert {"4", "5", "6", "7", "8"} <= set(first.executed)
    assert "2 LoRAs trained" in first.outputs["6"]["text"][0]
    assert len(first.outputs["4"]["images"]) == 4 and len(first.outputs["5"]["images"]) == 4
    again = server.client.queue(erasure(strengths="dog = 0.5"))
    assert set(again.executed) == {"7", "8"}
    (reference,) = again.outputs["8"]["checkpoints"]
    path = server.base_dir / "output" / reference["subfolder"] / reference["filename"]
    with safe_open(path, framework="pt") as saved:
        (stage,) = json.loads(saved.metadata()["mace.provenance"])["stages"]
    assert [concept["strength"] for concept in stage["concepts"]] == [0.5, 1.0]
    longer = server.client.queue(erasure(concepts="dog -> sky\ncat -> sky\nship -> sky"))
    assert "1 LoRAs trained, 2 of 3 kept from before" in longer.outputs["6"]["text"][0]


@pytest.mark.long
def test_an_interrupted_training_resumes(server):
    """POST /interrupt in the middle of the second concept: the first is not trained again."""
    graph = training("dog -> sky\nship -> sky", side_by_side="1", steps="24")
    seen = []

    def stop(title, value, most):
        if title == "MACE_TrainErasureLora" and value is not None:
            seen.append(value)
            if value > most * 0.6:
                server.client.interrupt()

    with pytest.raises(Interrupted):
        server.client.queue(graph, stop)
    assert seen == sorted(seen) and seen[-1] < 48
    result = server.client.queue(graph)
    assert "1 LoRAs trained, 1 of 2 kept from before" in result.outputs["6"]["text"][0]
    log = server.log_path.read_text(encoding="utf-8", errors="replace")
    assert "Traceback" not in log.split("Processing interrupted")[-1]


def test_saved_loras_of_every_concept_by_the_hosts_nodes(server):
    """The list outputs through SaveLoRA and LossGraphNode: a file and a graph a concept."""
    graph = erasure()
    graph["20"] = graphs.node("SaveLoRA", lora=("6", 1), prefix=("6", 3))
    graph["21"] = graphs.node("LossGraphNode", loss=("6", 2), filename_prefix="loss")
    server.client.queue(graph)
    found = sorted(path.name for path in (server.base_dir / "output/loras").glob("mace_*"))
    assert [name.split("_0")[0] for name in found] == ["mace_dog", "mace_ship"]
    assert all(name.endswith(".safetensors") for name in found)
    tensors = load_file(server.base_dir / "output/loras" / found[0])
    assert any(name.endswith("attn2.to_k.lora_up.weight") for name in tensors)


@pytest.mark.long
def test_a_saved_set_is_fused_with_other_strengths(server):
    """Save, load, fuse by the file alone, with moments in it and with a CLIP: the same weights either way."""
    graph = erasure()
    for node_id, moments in (("20", True), ("21", False)):
        graph[node_id] = graphs.node(
            "MACE_SaveLoras",
            loras=("6", 0),
            filename_prefix=f"mace_loras/set_{'with' if moments else 'without'}",
            format="set (MACE)",
            moments=moments,
        )
    server.client.queue(graph)
    names = sorted(path.name for path in (server.base_dir / "output/mace_loras").glob("set_*"))
    assert len(names) == 2
    weights = []
    for name in names:
        loaded = {
            "1": graphs.node("CheckpointLoaderSimple", ckpt_name=graphs.CHECKPOINT),
            "2": graphs.node("MACE_LoadLoras", loras_name=name),
            "3": graphs.node("MACE_FuseLoras", model=("1", 0), loras=("2", 0), **{**FUSE, "strengths": "dog = 0.5"}),
            "4": graphs.save(model=("3", 0), prefix="checkpoints/from_file"),
        }
        if "without" in name:
            loaded["3"]["inputs"]["clip"] = ["1", 1]
        (reference,) = server.client.queue(loaded).outputs["4"]["checkpoints"]
        weights.append(load_file(server.base_dir / "output" / reference["subfolder"] / reference["filename"]))
    for key, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][key])


@pytest.mark.parametrize("name", [pytest.param("quick", marks=pytest.mark.long), "fuse"])
def test_an_example_workflow_erases_and_its_checkpoint_loads_anywhere(server, name):
    """As it is shipped but for the pictures' steps: they are there before and after; queueing again runs nothing.

    The demo's test runs `full`. `quick` trains as much in one node, which the first click has from the page.
    """
    prompt = to_prompt(graphs.drawn_quickly(graphs.workflow(name)), server.client.object_info())
    result = server.client.queue(prompt)
    previews = [
        output["images"] for key, output in result.outputs.items() if prompt[key]["class_type"] == "PreviewImage"
    ]
    assert [len(images) for images in previews] == [graphs.FEW] * 2
    again = server.client.queue(prompt)
    assert not [key for key in again.executed if prompt[key]["class_type"].startswith("MACE_")]


def test_previews_and_words_while_training(server):
    """What a client of the websocket sees: pictures of the losses, and the concept, step and loss in words."""
    import asyncio

    import aiohttp

    async def watch():
        binary = []
        address = server.url.replace("http", "ws") + "/ws?clientId=watcher"
        async with aiohttp.ClientSession() as session, session.ws_connect(address) as socket:
            await socket.send_json({"type": "feature_flags", "data": {"supports_preview_metadata": True}})
            body = json.dumps({"prompt": training(steps="12"), "client_id": "watcher"}).encode()
            request = urllib.request.Request(server.url + "/prompt", body, {"Content-Type": "application/json"})
            opened = await asyncio.to_thread(urllib.request.urlopen, request)
            opened.close()
            deadline = time.monotonic() + 300
            running = None
            while time.monotonic() < deadline:
                message = await socket.receive(timeout=300)
                if message.type == aiohttp.WSMsgType.BINARY and running == "6":
                    binary.append(message.data)
                elif message.type == aiohttp.WSMsgType.TEXT:
                    entry = json.loads(message.data)
                    if entry["type"] == "executing":
                        running = entry["data"].get("node")
                        if running is None:
                            return binary
                    assert entry["type"] != "execution_error", entry
        return binary

    binary = asyncio.run(watch())
    words = [data[8:].decode() for data in binary if data[3] == 3]
    assert any("dog: step 12 of 12, loss" in text for text in words), words
    assert any(b"JFIF" in data[:400] for data in binary)
