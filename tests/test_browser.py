"""The pack in ComfyUI's real page, in a real browser."""

import os
import time

import pytest

from devtools import host
from devtools.graph import to_prompt
from tests import graphs

pytestmark = pytest.mark.browser

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser():
    path = os.environ.get("MACE_BROWSER")
    if not path:
        message = "no Chromium: install one, or name it in MACE_BROWSER"
        pytest.fail(message) if os.environ.get("MACE_REQUIRE_BROWSER") else pytest.skip(message)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser, server):
    opened = browser.new_page(viewport={"width": 1600, "height": 1000})
    opened.goto(server.url)
    opened.wait_for_function("window.app && window.app.graph && window.app.canvas", timeout=60_000)
    opened.wait_for_selector('[data-testid="queue-button"]', timeout=60_000)
    yield opened
    opened.close()


def load(page, workflow):
    page.evaluate("workflow => window.app.loadGraphData(workflow)", workflow)
    page.wait_for_function("count => window.app.graph.nodes.length === count", arg=len(workflow["nodes"]))


def history(server):
    return host.get_json(server.url + "/history")


def without_titles(prompt):
    return {key: {"class_type": node["class_type"], "inputs": node["inputs"]} for key, node in prompt.items()}


def example_names():
    return sorted(path.stem for path in (graphs.REPO / "example_workflows").glob("*.json"))


@pytest.mark.parametrize("name", example_names())
def test_a_workflow_round_trips(page, server, name):
    """The page finds every node, and makes of the workflow what the command line makes of it, also after saving."""
    workflow = graphs.workflow(name)
    load(page, workflow)
    assert page.evaluate("window.app.graph.nodes.filter(n => n.has_errors).map(n => n.type)") == []
    info = server.client.object_info()
    known = page.evaluate("Object.keys(LiteGraph.registered_node_types)")
    assert {node["type"] for node in workflow["nodes"]} <= {*known, "MarkdownNote", "Note"}
    queued = page.evaluate("window.app.graphToPrompt()")
    assert without_titles(queued["output"]) == without_titles(to_prompt(workflow, info))
    saved = page.evaluate("window.app.graph.serialize()")
    assert without_titles(to_prompt(saved, info)) == without_titles(queued["output"])


def test_queue_from_the_page(page, server):
    """The queue button runs the example: the save node names the file, the pictures appear."""
    load(page, graphs.workflow("refine"))
    before = set(history(server))
    page.click('[data-testid="queue-button"]')
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        done = {key: entry for key, entry in history(server).items() if key not in before}
        if done:
            break
        time.sleep(0.5)
    ((_, entry),) = done.items()
    assert entry["status"]["status_str"] == "success"
    page.wait_for_function(
        "window.app.graph.nodes.filter(n => n.type === 'PreviewImage' && n.imgs && n.imgs.length === 6).length === 2"
    )
    reports = page.evaluate(
        """() => Object.fromEntries(window.app.graph.nodes.flatMap(n =>
            (n.widgets ?? []).filter(w => w.name === 'report').map(w => [n.type, w.element.value])))"""
    )
    assert "|T - I|" in reports["MACE_CFRRefine"] and "mu 10 (auto)" in reports["MACE_CFRRefine"]
    assert "mace_demo_refined" in reports["MACE_SaveErasedModel"]
    # The reports belong to the run: neither the saved workflow nor the next prompt holds them.
    saved = page.evaluate("window.app.graph.serialize()")
    queued = page.evaluate("window.app.graphToPrompt()")
    assert without_titles(to_prompt(saved, server.client.object_info())) == without_titles(queued["output"])
    assert not any("report" in node["inputs"] for node in queued["output"].values())


def test_an_error_in_the_lines_stands_on_the_node(page, server):
    load(page, graphs.workflow("refine"))
    page.evaluate(
        """() => {
            const node = window.app.graph.nodes.find(n => n.type === 'MACE_Concepts');
            node.widgets.find(w => w.name === 'concepts').value = 'dog -> sky\\nship -> a -> b';
        }"""
    )
    page.click('[data-testid="queue-button"]')
    page.wait_for_function("window.app.graph.nodes.some(n => n.type === 'MACE_Concepts' && n.has_errors)")
    errors = page.evaluate("Object.values(window.app.lastNodeErrors).flatMap(entry => entry.errors)")
    assert len(errors) == 1 and errors[0]["extra_info"]["input_name"] == "concepts"
    assert "line 2: more than one '->'" in errors[0]["details"]


def test_the_help_page_is_served(page):
    """From where the page's help panel reads it."""
    text = page.evaluate("fetch('/extensions/mace-comfyui/docs/MACE_CFRRefine.md').then(r => r.text())")
    assert "lambda1" in text
