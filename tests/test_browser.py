"""The pack in ComfyUI's real page, in a real browser."""

import pytest

from devtools.graph import to_prompt
from devtools.pages import load, press_queue
from tests import graphs
from tests.pages import queued, reports, saved, wait_for_pictures, without_titles

pytestmark = pytest.mark.browser


def example_names():
    return sorted(path.stem for folder in (graphs.TEMPLATES, graphs.DEMO_TEMPLATES) for path in folder.glob("*.json"))


# The page marks nodes whose files are not there: the tests have no SAM3.
WITHOUT_FILES = {"masks_sam3": ["CheckpointLoaderSimple"]}


@pytest.mark.parametrize("name", example_names())
def test_a_workflow_round_trips(kept_page, server, name):
    """The page finds every node, and makes of the workflow what the command line makes of it, also after saving."""
    workflow, page = graphs.workflow(name), kept_page
    load(page, workflow)
    marked = page.evaluate("window.app.graph.nodes.filter(n => n.has_errors).map(n => n.type)")
    assert marked == WITHOUT_FILES.get(name, [])
    info = server.client.object_info()
    known = page.evaluate("Object.keys(LiteGraph.registered_node_types)")
    assert {node["type"] for node in workflow["nodes"]} <= {*known, "MarkdownNote", "Note"}
    prompt = without_titles(queued(page))
    assert prompt == without_titles(to_prompt(workflow, info))
    assert without_titles(to_prompt(saved(page), info)) == prompt


def test_the_page_has_one_extension_of_the_pack_and_its_nodes_types_as_the_host_made_them(kept_page):
    names = kept_page.evaluate("window.app.extensions.map(own => own.name).filter(name => /mace/i.test(name))")
    assert names == ["MACE"]
    own = kept_page.evaluate(
        """() => Object.fromEntries(Object.entries(window.LiteGraph.registered_node_types)
            .filter(([name]) => name.startsWith('MACE_') || name === 'CheckpointLoaderSimple')
            .map(([name, type]) => [name, Object.getOwnPropertyNames(type.prototype).sort()]))"""
    )
    usual = own.pop("CheckpointLoaderSimple")
    assert len(own) > 20 and {name: keys for name, keys in own.items() if keys != usual} == {}


def test_queue_from_the_page(kept_page, server):
    """The queue button runs the example: the save node names the file, the pictures appear."""
    page = kept_page
    load(page, graphs.drawn_quickly(graphs.workflow("refine")))
    press_queue(page)
    wait_for_pictures(page)
    said = reports(page)
    assert "|T - I|" in said["MACE_CFRRefine"] and "mu 10 (auto)" in said["MACE_CFRRefine"]
    assert "mace_demo_refined" in said["MACE_SaveErasedModel"]
    # The reports belong to the run: neither the saved workflow nor the next prompt holds them.
    prompt = queued(page)
    assert without_titles(to_prompt(saved(page), server.client.object_info())) == without_titles(prompt)
    assert not any("report" in node["inputs"] for node in prompt.values())


def test_an_error_in_the_lines_stands_on_the_node(kept_page):
    page = kept_page
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


def test_the_help_page_is_served(kept_page):
    """From where the page's help panel reads it."""
    text = kept_page.evaluate("fetch('/extensions/mace-comfyui/docs/MACE_CFRRefine.md').then(r => r.text())")
    assert "lambda1" in text
