"""What the pack shows on nodes in subgraphs and on the nodes of subgraphs, in ComfyUI's real page."""

import pytest

from devtools.pages import load
from tests import graphs
from tests.pages import queued, use_vue

pytestmark = pytest.mark.browser


@pytest.fixture
def page(kept_page):
    """One page for all: every test opens a workflow of its own."""
    yield kept_page
    use_vue(kept_page, False)


def enclose(page, *kinds):
    """Put the nodes of these types into one subgraph; the id of its node."""
    return page.evaluate(
        """kinds => { const { graph } = window.app;
            const inside = graph.nodes.filter(node => kinds.includes(node.type));
            return graph.convertToSubgraph(new Set(inside)).node.id; }""",
        kinds,
    )


def enter(page, node):
    page.evaluate(
        """id => { const { canvas, graph } = window.app;
            canvas.setGraph(graph.getNodeById(id).subgraph);
            canvas.ds.scale = 1;
            canvas.centerOnNode(canvas.graph.nodes.find(node => node.type === 'MACE_FuseLoras')); }""",
        node,
    )


def offer(page, host, *names):
    """Make widgets of the nodes in a subgraph inputs of the subgraph, as the page's menu does."""
    page.evaluate(
        """([host, names]) => { const { subgraph } = window.app.graph.getNodeById(host);
            for (const name of names) {
                const node = subgraph.nodes.find(own => own.inputs.some(input => input.widget?.name === name));
                subgraph.addInput(name, 'STRING').connect(node.inputs.find(input => input.name === name), node);
            } }""",
        [host, names],
    )


def named(page):
    return page.evaluate(
        """() => [...document.querySelectorAll('input[aria-label^="strength of "]')].map(
            slider => slider.getAttribute('aria-label').slice(12))"""
    )


def slider(page, name):
    return page.get_by_role("slider", name=f"strength of {name}", exact=True)


@pytest.mark.parametrize("vue", [False, True], ids=["classic", "Vue"])
def test_sliders_know_the_concepts_across_the_borders_of_subgraphs(page, vue):
    use_vue(page, vue)
    load(page, graphs.workflow("full"))
    wanted = {"dog", "airplane", "ship", "Twemoji"}
    fused = enclose(page, "MACE_FuseLoras")
    listed = enclose(page, "MACE_Concepts")
    enter(page, fused)
    slider(page, "Twemoji").wait_for()
    assert set(named(page)) == wanted
    slider(page, "dog").press("Home")
    inner = "window.app.graph.getNodeById(id).subgraph.nodes.find(node => node.type === 'MACE_FuseLoras')"
    text = page.evaluate(f"id => {inner}.widgets.find(w => w.name === 'strengths').value", fused)
    assert text == "dog = 0"
    # What is written on the subgraph's node counts, and no longer what stands inside.
    page.evaluate("window.app.canvas.setGraph(window.app.rootGraph)")
    offer(page, listed, "concepts")
    page.evaluate(
        """id => { window.app.graph.getNodeById(id).widgets.find(w => w.name === 'concepts').value = 'horse\\nfrog';
            window.app.extensionManager.workflow.activeWorkflow.changeTracker.captureCanvasState(); }""",
        listed,
    )
    enter(page, fused)
    slider(page, "frog").wait_for()
    assert {"horse", "frog"} <= set(named(page))


def drag_by(page, x, y, by):
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + by / 2, y, steps=5)
    page.mouse.move(x + by, y, steps=5)
    page.mouse.up()


@pytest.mark.parametrize("vue", [False, True], ids=["classic", "Vue"])
def test_numbers_on_the_node_of_a_subgraph_are_dragged(page, vue):
    use_vue(page, vue)
    load(page, graphs.workflow("full"))
    host = enclose(page, "MACE_CFRRefine")
    offer(page, host, "mu")

    def mu():
        return next(node["inputs"]["mu"] for node in queued(page).values() if node["class_type"] == "MACE_CFRRefine")

    before = float(mu())
    page.evaluate(
        """id => { const { canvas, graph } = window.app;
            canvas.ds.scale = 1; canvas.centerOnNode(graph.getNodeById(id)); canvas.draw(true, true); }""",
        host,
    )
    if vue:
        box = page.locator(f'[data-node-id="{host}"] input[aria-label="mu"]').bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    else:
        x, y = page.evaluate(
            """id => { const { canvas, graph } = window.app;
                const node = graph.getNodeById(id);
                const box = canvas.canvas.getBoundingClientRect();
                const [x, y] = canvas.ds.convertOffsetToCanvas(
                    [node.pos[0] + 60, node.pos[1] + node.widgets.find(w => w.name === 'mu').y + 10]);
                return [box.left + x, box.top + y]; }""",
            host,
        )
    drag_by(page, x, y, 120)
    assert float(mu()) == pytest.approx(10 * before, rel=0.1)
