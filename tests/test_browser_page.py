"""The pack in ComfyUI's real page as any node's: found by the search and placed, its help, a run that is cancelled."""

import pytest

from devtools.pages import load
from tests import graphs
from tests.pages import use_vue

pytestmark = pytest.mark.browser


@pytest.fixture
def page(kept_page):
    """One page for all: every test begins with a graph of its own."""
    yield kept_page
    use_vue(kept_page, False)


def of_the_pack(server) -> dict[str, str]:
    """The names that its nodes bear on the page, by their ids."""
    every = server.client.object_info()
    return {name: node["display_name"] for name, node in every.items() if name.startswith("MACE_")}


@pytest.mark.long
def test_every_node_is_found_by_the_search_and_placed(page, server):
    """By its name, in the page's own dialog, put down by a press; then it stands there in both renderers."""
    names = of_the_pack(server)
    assert len(names) > 20
    page.evaluate("() => { const { graph, canvas } = window.app; graph.clear(); canvas.ds.reset(); }")
    for place, (kind, name) in enumerate(names.items()):
        page.evaluate("window.app.extensionManager.command.execute('Workspace.SearchBox.Toggle')")
        page.get_by_placeholder("Add a node...").fill(name)
        page.get_by_test_id("result-item").get_by_text(name, exact=True).first.click()
        # It hangs at the pointer until it is put down, where no part of the dialog is any more.
        page.wait_for_function("window.app.canvas.state.ghostNodeId != null")
        page.locator("#graph-canvas").click(position={"x": 900, "y": 500})
        page.wait_for_function(
            "([kind, count]) => window.app.canvas.state.ghostNodeId == null && window.app.graph.nodes.length === count"
            " && window.app.graph.nodes.at(-1).type === kind",
            arg=[kind, place + 1],
        )
        # Away from where the next one is put down.
        page.evaluate(
            "place => { window.app.graph.nodes.at(-1).pos = [(place % 6) * 600, 4000 + Math.floor(place / 6) * 900]; }",
            place,
        )
    page.evaluate("() => { const { canvas } = window.app; canvas.ds.scale = 0.3; canvas.ds.offset = [100, -3900]; }")
    # Widgets that are elements of the page and not drawn.
    panels = """window.app.graph.nodes.flatMap(node => (node.widgets ?? []).filter(w => w.element && !w.hidden))"""
    page.wait_for_function(f"{panels}.length > 5 && {panels}.every(w => w.element.isConnected)")
    use_vue(page, True)
    ids = page.evaluate("Object.fromEntries(window.app.graph.nodes.map(node => [node.type, String(node.id)]))")
    assert set(ids) == set(names)
    for kind, name in names.items():
        element = page.locator(f'[data-node-id="{ids[kind]}"]')
        element.get_by_text(name, exact=True).first.wait_for()
        assert element.locator(".node-error").count() == 0


@pytest.mark.parametrize("vue", [False, True], ids=["classic", "Vue"])
def test_the_help_of_a_node_opens_with_its_picture(page, vue):
    """By a press on the node and the button that the page then shows."""
    use_vue(page, vue)
    load(page, graphs.workflow("refine"))
    node, *place = page.evaluate(
        """() => { const { canvas, graph } = window.app;
            const node = graph.nodes.find(n => n.type === 'MACE_CFRRefine');
            canvas.deselectAll();
            canvas.ds.scale = 1; canvas.centerOnNode(node); canvas.draw(true, true);
            const box = canvas.canvas.getBoundingClientRect();
            const [x, y] = canvas.ds.convertOffsetToCanvas([node.pos[0] + 90, node.pos[1] - 15]);
            return [node.id, box.left + x, box.top + y]; }"""
    )
    if vue:
        # An element of its own, that moves some frames after the canvas: the press waits until it stands.
        page.locator(f'[data-node-id="{node}"]').get_by_text("CFR Refine (MACE)", exact=True).first.click()
    else:
        page.mouse.click(*place)
    page.get_by_test_id("info-button").click()
    content = page.locator(".node-help-content")
    content.get_by_text("lambda1", exact=True).first.wait_for()
    picture = content.locator("img").first.element_handle()
    page.wait_for_function("image => image.naturalWidth > 0", arg=picture)
    assert "MACE_CFRRefine" in picture.get_attribute("src")
    page.get_by_role("button", name="Toggle properties panel").last.click()
    content.wait_for(state="detached")


def drawing():
    """Concept Images, so many that no machine is done before a press."""
    needed = ("MACE_Concepts", "MACE_ConceptImages", "CheckpointLoaderSimple")
    workflow = graphs.asked_for(graphs.only(graphs.workflow("aliases"), *needed), "MACE_ConceptImages", "images")
    images = next(node for node in workflow["nodes"] if node["type"] == "MACE_ConceptImages")
    images["widgets_values"][0], images["widgets_values"][3:5] = 64, [5, 200]
    return workflow


def training():
    """Train Erasure LoRA on the model as it is, as many steps."""
    needed = ["MACE_Concepts", "MACE_ConceptImages", "MACE_MaskConcept", "MACE_TrainErasureLora"]
    workflow = graphs.workflow("full")
    nodes = {node["type"]: node for node in workflow["nodes"]}
    refined = next(slot["link"] for slot in nodes[needed[-1]]["inputs"] if slot["name"] == "model")
    loader = nodes["CheckpointLoaderSimple"]
    loader["outputs"][0]["links"].append(refined)
    next(link for link in workflow["links"] if link[0] == refined)[1:3] = [loader["id"], 0]
    nodes["MACE_ConceptImages"]["widgets_values"][0] = nodes["MACE_ConceptImages"]["widgets_values"][4] = 1
    nodes[needed[-1]]["widgets_values"][2] = "9999"
    # The last node of concepts alone, which has one.
    first = next(node for node in workflow["nodes"] if node["type"] == "MACE_Concepts")
    workflow["nodes"].remove(first)
    return graphs.asked_for(graphs.only(workflow, *needed, "CheckpointLoaderSimple"), needed[-1], "losses")


@pytest.mark.parametrize(
    "vue, kind, make",
    [(False, "MACE_ConceptImages", drawing), (True, "MACE_TrainErasureLora", training)],
    ids=["classic", "Vue"],
)
def test_a_run_is_cancelled_by_the_pages_button(page, vue, kind, make):
    """While the node works; nothing of it is left running, and the node has no error."""
    use_vue(page, vue)
    load(page, make())
    page.evaluate(
        """() => { window.told = [];
            if (window.tells) return;
            window.tells = true;
            for (const kind of ['progress', 'execution_interrupted', 'execution_success', 'execution_error'])
                window.app.api.addEventListener(kind, said => window.told.push([kind, said.detail])); }"""
    )
    page.click('[data-testid="queue-button"]')
    working = """kind => window.told.some(([event, said]) => event !== 'progress'
        || said.value > 0 && window.app.graph.getNodeById(said.node)?.type === kind)"""
    page.wait_for_function(working, arg=kind, timeout=180_000)
    page.get_by_role("button", name="Cancel current run").click()
    page.wait_for_function("window.told.some(([kind]) => kind !== 'progress')", timeout=60_000)
    ended = page.evaluate(
        "window.told.filter(([kind]) => kind !== 'progress').map(([kind, said]) => [kind, said.node_type])"
    )
    assert ended == [["execution_interrupted", kind]]
    assert page.evaluate("window.app.graph.nodes.filter(node => node.has_errors).length") == 0
    queue = page.evaluate("fetch('/queue').then(answer => answer.json())")
    assert queue["queue_running"] == [] and queue["queue_pending"] == []
