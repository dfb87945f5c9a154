"""What survives a server that is killed outright, and what the host's "free memory" empties."""

import json
import os
import signal
import sys
import threading
import time
import urllib.request

import pytest
from safetensors import safe_open

from devtools import host as hosts
from devtools.client import Client
from tests.test_server_training import training

pytestmark = pytest.mark.server


def post(server, path, body):
    request = urllib.request.Request(server.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert answer.status == 200


def test_freeing_memory_empties_the_caches(server):
    """Then images are drawn again; trained LoRAs come back from disk."""
    graph = training(steps="2")
    server.client.queue(graph)
    post(server, "/free", {"free_memory": True, "unload_models": True})
    # The host does its own part when its worker wakes up; until then all is there.
    end = time.monotonic() + 60
    while not (again := server.client.queue(graph)).executed and time.monotonic() < end:
        time.sleep(0.5)
    assert {"4", "6"} <= set(again.executed)
    assert "1 of them read from disk" in again.outputs["6"]["text"][0]


@pytest.mark.long
def test_a_killed_server_resumes_at_the_step(server_base, demo_checkpoint):
    """SIGKILL in the middle of a training: the next process goes on from the last state on disk."""
    graph = training(steps="2000", side_by_side="1")
    start, base = dict(cpu=True, checkpoint=demo_checkpoint), server_base("killed")
    folder = base / "user" / "mace" / "loras"
    with hosts.start(os.environ["MACE_COMFYUI"], sys.executable, base, **start) as first:
        client = Client(first.url)

        def run():
            try:
                client.queue(graph)
            except Exception:
                pass  # the server dies under it

        threading.Thread(target=run, daemon=True).start()
        end = time.monotonic() + 240
        while not list(folder.glob("*.state.safetensors")) and time.monotonic() < end:
            time.sleep(0.1)
        os.kill(first.process.pid, signal.SIGKILL)
        first.process.wait()
    assert list(folder.glob("*.state.safetensors")), "no state was kept"
    with hosts.start(os.environ["MACE_COMFYUI"], sys.executable, base, **start) as second:
        client = Client(second.url)

        def stop(title, value, most):
            if title == "MACE_TrainErasureLora" and value:
                client.interrupt()

        with pytest.raises(Exception):  # noqa: B017  (interrupted by this test)
            client.queue(graph, stop)
        kept = list(folder.glob("*.state.safetensors"))
        with safe_open(kept[0], framework="pt") as state:
            steps = len(state.get_tensor("losses"))
    # It went on from a state, which stands at 25 or a multiple, and was interrupted soon.
    assert len(kept) == 1 and steps > 25
