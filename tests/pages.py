"""What the browser tests do with ComfyUI's page."""

import time

from devtools import host
from tests import graphs


def load(page, workflow: dict) -> None:
    """Open a workflow."""
    page.evaluate("workflow => window.app.loadGraphData(workflow)", workflow)
    page.wait_for_function("count => window.app.graph.nodes.length === count", arg=len(workflow["nodes"]))


def press_queue(page, server, timeout: float = 300) -> dict:
    """Press the queue button; the history's entry of the run once it has succeeded and the page knows all of it."""
    page.evaluate(
        """() => {
            if (window.ended) return;
            window.ended = [];
            for (const kind of ['success', 'error', 'interrupted'])
                window.app.api.addEventListener(`execution_${kind}`, said => window.ended.push(said.detail.prompt_id));
        }"""
    )
    # What was queued before may still run.
    with page.expect_response(lambda answer: answer.request.method == "POST" and answer.url.endswith("/prompt")) as own:
        page.click('[data-testid="queue-button"]')
    prompt = own.value.json()["prompt_id"]
    page.wait_for_function("prompt => window.ended.includes(prompt)", arg=prompt, timeout=1000 * timeout)
    # The page is told a moment before the history has it.
    deadline = time.monotonic() + 60
    while not (entry := host.get_json(f"{server.url}/history/{prompt}")) and time.monotonic() < deadline:
        time.sleep(0.02)
    entry = entry[prompt]
    assert entry["status"]["status_str"] == "success", entry["status"]
    return entry


def wait_for_pictures(page, nodes: int = 2, each: int = graphs.FEW) -> None:
    """Until as many Preview Image nodes show as many pictures, drawn."""
    page.wait_for_function(
        """([nodes, each]) => window.app.graph.nodes.filter(n => n.type === 'PreviewImage' && n.imgs &&
            n.imgs.length === each && n.imgs.every(i => i.naturalWidth > 0)).length === nodes""",
        arg=[nodes, each],
        # On a busy machine the page is slow to fetch and draw them.
        timeout=180_000,
    )


def reports(page) -> dict[str, str]:
    """What the nodes report of the run, by the nodes' type."""
    return page.evaluate(
        """() => Object.fromEntries(window.app.graph.nodes.flatMap(n =>
            (n.widgets ?? []).filter(w => w.name === 'report').map(w => [n.type, w.element.value])))"""
    )


def saved(page) -> dict:
    """The workflow as the page would save it."""
    return page.evaluate("JSON.parse(JSON.stringify(window.app.graph.serialize()))")


def queued(page) -> dict:
    """The prompt that the page would queue."""
    return page.evaluate("window.app.graphToPrompt()")["output"]


def without_titles(prompt: dict) -> dict:
    """A prompt without what only the page needs."""
    return {key: {"class_type": node["class_type"], "inputs": node["inputs"]} for key, node in prompt.items()}
