"""ComfyUI's page in a browser: opened, given a workflow, and its queue button pressed. For tests and screenshots."""

import time

from playwright.sync_api import Browser, Page

# Milliseconds in which a page opens, also on a busy machine.
PATIENCE = 60_000


def open_page(browser: Browser, url: str, width: int = 1600, height: int = 1000) -> Page:
    """The page of a host at `url`, ready. width, height: of what is seen of it, in pixels."""
    # Animations are drawn by the processor that the host computes with.
    opened = browser.new_page(viewport={"width": width, "height": height}, reduced_motion="reduce")
    opened.goto(url)
    opened.wait_for_function("window.app && window.app.graph && window.app.canvas", timeout=PATIENCE)
    opened.wait_for_selector('[data-testid="queue-button"]', timeout=PATIENCE)
    # The page loads a workflow of its own first, which would take the place of one that is loaded before.
    opened.wait_for_function("window.app.extensionManager.workflow.activeWorkflow", timeout=PATIENCE)
    return opened


def load(page: Page, workflow: dict) -> None:
    """Open a workflow."""
    page.evaluate("workflow => window.app.loadGraphData(workflow)", workflow)
    page.wait_for_function("count => window.app.graph.nodes.length === count", arg=len(workflow["nodes"]))


def press_queue(page: Page, timeout: float = 300) -> dict:
    """Press the queue button; the history's entry of the run once it has succeeded and the page knows all of it.

    timeout: in seconds. Raises AssertionError where the run fails.
    """
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
    answer = own.value.json()
    assert "prompt_id" in answer, answer
    prompt = answer["prompt_id"]
    page.wait_for_function("prompt => window.ended.includes(prompt)", arg=prompt, timeout=1000 * timeout)
    # The page is told a moment before the history has it.
    history = "async prompt => (await (await fetch(`/history/${prompt}`)).json())[prompt] ?? null"
    entry = page.evaluate(history, prompt)
    end = time.monotonic() + PATIENCE / 1000
    while entry is None and time.monotonic() < end:
        page.wait_for_timeout(50)
        entry = page.evaluate(history, prompt)
    assert entry and entry["status"]["status_str"] == "success", entry and entry["status"]
    return entry
