"""What a run left on the nodes, in ComfyUI's real page and in both renderers, through undo, other tabs and edits."""

from urllib.parse import parse_qs, urlsplit

import pytest

from devtools.pages import load, press_queue
from tests import graphs
from tests.pages import reports, use_vue

pytestmark = pytest.mark.browser

FUSE = "const node = window.app.canvas.graph.nodes.find(n => n.type === 'MACE_FuseLoras');"
STRENGTHS = "dog = 0.5\n* = 0"


def fusion() -> dict:
    """Fuse LoRAs with what it needs, in view."""
    needed = ("CheckpointLoaderSimple", "MACE_LoadLoras", "MACE_LoadPrior", "MACE_FuseLoras")
    workflow = graphs.asked_for(graphs.only(graphs.workflow("fuse"), *needed), "MACE_FuseLoras", "model")
    fuse = next(node for node in workflow["nodes"] if node["type"] == "MACE_FuseLoras")
    fuse["pos"], fuse["widgets_values"][:2] = [700, 60], ["naive sum (Eq. 6)", STRENGTHS]
    return workflow


@pytest.fixture(scope="module")
def page(kept_page):
    """The page after one run of the fusion; `kept_page.run` is what the run's history holds of the node."""
    load(kept_page, fusion())
    kept_page.evaluate("window.app.extensionManager.workflow.activeWorkflow.changeTracker.captureCanvasState()")
    entry = press_queue(kept_page)
    (kept_page.run,) = (output for output in entry["outputs"].values() if "a_images" in output)
    yield kept_page
    use_vue(kept_page, False)


def strengths(page):
    return page.evaluate(f"() => {{ {FUSE} return node?.widgets.find(w => w.name === 'strengths').value; }}")


def slider(page, name):
    return page.get_by_role("slider", name=f"strength of {name}", exact=True)


def check_shown(page, vue):
    """Report, sliders and the pictures before and after are on the node, and are those of the run; of what it said
    while it ran nothing is left."""
    page.wait_for_function(
        f"""said => {{ {FUSE} const own = name => node?.widgets.find(w => w.name === name)?.element;
            const report = own('report'), sliders = own('strength sliders');
            const names = node?.widgets.map(w => w.name) ?? [];
            return report?.value === said && names.indexOf('report') < names.indexOf('before and after') &&
                !names.includes('$$node-text-preview') && report.offsetHeight >= 70 && sliders?.offsetHeight > 0; }}""",
        arg="\n".join(page.run["text"]),
    )
    pictures = page.locator('[data-testid="image-compare-viewport"] img' if vue else ".mace-compare img")
    pictures.nth(1).wait_for()
    names = set()
    for handle in pictures.element_handles():
        page.wait_for_function("image => image.naturalWidth > 0", arg=handle)
        names.add(parse_qs(urlsplit(handle.get_attribute("src")).query)["filename"][0])
    assert names == {page.run[name][0]["filename"] for name in ("a_images", "b_images")}
    assert pictures.count() == 2


def drag_to_the_end(page, name):
    """Move a slider with the mouse as far as it goes."""
    box = slider(page, name).bounding_box()
    page.mouse.move(box["x"] + 8, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] + 20, box["y"] + box["height"] / 2, steps=4)
    page.mouse.up()


def becomes(page, text):
    page.wait_for_function(
        f"text => {{ {FUSE} return node?.widgets.find(w => w.name === 'strengths').value === text; }}", arg=text
    )


@pytest.mark.parametrize("vue", [False, True], ids=["classic", "Vue"])
def test_undo_and_another_tab_keep_what_a_run_left(page, vue):
    """The sliders are the ones of the node that undo made, and each way of drawing nodes has a compare of its own."""
    use_vue(page, vue)
    check_shown(page, vue)
    # Two presses in one place would be a double click, which opens the search for a node.
    for height in (700, 850):
        drag_to_the_end(page, "ship")
        assert strengths(page) == STRENGTHS + "\nship = 1" and slider(page, "ship").input_value() == "1"
        # A press on the empty canvas: in a field, undo is the field's own.
        page.mouse.click(300, height)
        page.keyboard.press("Control+z")
        becomes(page, STRENGTHS)
        check_shown(page, vue)
        assert slider(page, "ship").input_value() == "0"
    slider(page, "dog").press("ArrowRight")
    assert strengths(page) == "dog = 0.55\n* = 0"
    slider(page, "dog").press("ArrowLeft")
    tab = page.evaluate("window.app.extensionManager.workflow.activeWorkflow.filename")
    page.evaluate("window.app.extensionManager.command.execute('Comfy.NewBlankWorkflow')")
    page.wait_for_function("window.app.graph.nodes.length === 0")
    assert page.get_by_role("textbox", name="report").count() == 0
    page.locator(".workflow-tab").get_by_text(tab, exact=True).click()
    becomes(page, STRENGTHS)
    check_shown(page, vue)


def test_the_wheel_over_a_report_and_pictures_zooms_the_canvas(page):
    use_vue(page, False)
    check_shown(page, False)
    for place in (page.locator(".mace-compare"), page.get_by_role("textbox", name="report").first):
        before = page.evaluate("window.app.canvas.ds.scale")
        box = place.bounding_box()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.mouse.wheel(0, 50)
        page.wait_for_function("before => window.app.canvas.ds.scale !== before", arg=before)


def test_a_key_on_a_button_of_the_compare_takes_no_node_away(page):
    use_vue(page, False)
    page.evaluate(f"() => {{ {FUSE} window.app.canvas.selectItems([node]); }}")
    page.get_by_role("button", name="seed 1 of 2").press("Delete")
    page.get_by_role("button", name="seed 1 of 2").press("Enter")
    page.get_by_role("button", name="seed 2 of 2").wait_for()
    assert page.evaluate(f"() => {{ {FUSE} return Boolean(node); }}")


def test_the_page_can_take_a_live_picture_away(page):
    """What compare.js asks the page's store for, which is no public part of it."""
    kind = "typeof window.app.extensionManager._p._s.get('nodeOutput').revokePreviewsByLocatorId"
    assert page.evaluate(kind) == "function"


@pytest.mark.parametrize("vue", [False, True], ids=["classic", "Vue"])
def test_a_node_in_a_subgraph_shows_its_run(page, vue):
    use_vue(page, vue)
    load(page, fusion())
    page.evaluate(f"() => {{ {FUSE} window.app.graph.convertToSubgraph(new Set([node])); }}")
    entry = press_queue(page)
    (page.run,) = (output for output in entry["outputs"].values() if "a_images" in output)
    page.evaluate(
        """() => { const { canvas, graph } = window.app;
            canvas.setGraph(graph.nodes.find(n => n.isSubgraphNode?.()).subgraph);
            canvas.ds.scale = 0.8;
            canvas.centerOnNode(canvas.graph.nodes[0]); }"""
    )
    check_shown(page, vue)


@pytest.mark.parametrize("vue", [False, True], ids=["classic", "Vue"])
def test_a_warning_of_concepts_goes_with_its_cause(page, vue):
    use_vue(page, vue)
    workflow = graphs.asked_for(graphs.only(graphs.workflow("full"), "MACE_Concepts"), "MACE_Concepts", "concepts")
    for node in workflow["nodes"]:
        if node["type"] == "MACE_Concepts":
            node["pos"], node["widgets_values"][0] = [500, 150], "#metoo\ndog"
    load(page, workflow)
    press_queue(page)
    assert "'#metoo'" in reports(page)["MACE_Concepts"]
    page.get_by_role("textbox", name="report").first.wait_for()
    page.evaluate(
        """() => window.app.graph.nodes.filter(n => n.type === 'MACE_Concepts').forEach(
            n => { n.widgets.find(w => w.name === 'concepts').value = 'dog'; })"""
    )
    press_queue(page)
    assert "MACE_Concepts" not in reports(page)
    page.get_by_role("textbox", name="report").first.wait_for(state="detached")
