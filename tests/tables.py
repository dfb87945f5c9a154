"""The concept table on Concepts and Erase Concepts in ComfyUI's real page: what its tests do with it."""

import pytest

from tests.pages import queued, use_vue

FOUND = "window.app.canvas.graph.nodes.find(node => node.type.startsWith('MACE_') && node.maceTable)"
VALUE = f"const node = {FOUND}; const value = node?.widgets.find(w => w.name === node.maceTable.field).value;"
# Two frames: what is to be drawn is.
DRAWN = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
LINES = "# animals\ndog -> sky  # mine\n\nship | boat -> ground\n# cat -> forest"


@pytest.fixture(scope="module", params=["classic", "Vue"])
def table_page(kept_page, request):
    """One page for a module, as it draws nodes in both ways."""
    kept_page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    use_vue(kept_page, request.param == "Vue")
    yield kept_page
    use_vue(kept_page, False)


def place(page, lines=LINES, kind="MACE_Concepts", width=420):
    """A graph of one node with these lines, all of it in view."""
    page.evaluate(
        """([kind, lines, width]) => {
            const { app, LiteGraph } = window;
            app.canvas.setGraph(app.rootGraph);
            app.graph.clear();
            // The page still knows what a node of the same number had.
            window.placed = app.graph.state.lastNodeId = (window.placed ?? 0) + 10;
            const node = LiteGraph.createNode(kind);
            node.pos = [500, 150];
            app.graph.add(node);
            node.setSize([width, node.size[1]]);
            node.widgets.find(w => w.name === node.maceTable.field).value = lines;
            app.canvas.ds.scale = 1;
            app.canvas.ds.offset = [0, 0];
            app.canvas.setDirty(true, true);
            app.extensionManager.workflow.activeWorkflow.changeTracker.captureCanvasState();
        }""",
        [kind, lines, width],
    )
    new_concept(page).wait_for()


def text(page):
    return page.evaluate(f"() => {{ {VALUE} return value; }}")


def becomes(page, lines):
    """Wait until the text is this, as after an undo, which makes the nodes anew."""
    page.wait_for_function(f"lines => {{ {VALUE} return value === lines; }}", arg=lines)


def sent(page):
    (node,) = queued(page).values()
    return node


def cell(page, name):
    return page.get_by_role("textbox", name=name, exact=True)


def new_concept(page):
    return cell(page, "target: new concept")


def button(page, name):
    return page.get_by_role("button", name=name, exact=True)


def focused(page):
    return page.evaluate("document.activeElement.getAttribute('aria-label')")


def errors(page):
    return [said for said in page.locator(".mace-row .mace-error").all_inner_texts() if said]
