"""In ComfyUI's real page: numbers that are linked, the blueprint of all stages, a picture dragged back in."""

import json
import re

import pytest

from devtools import host
from devtools.pages import load, open_page, press_queue
from tests import graphs
from tests.pages import queued, reports, watch
from tests.test_browser_subgraph import enter, slider

pytestmark = pytest.mark.browser

BLUEPRINT = "Erase concepts, stage by stage (MACE)"


@pytest.fixture
def page(kept_page):
    """One page for all: every test begins with a graph of its own."""
    return kept_page


def of_refine(page) -> dict:
    """The inputs of CFR Refine as the page would queue them."""
    return next(node["inputs"] for node in queued(page).values() if node["class_type"] == "MACE_CFRRefine")


@pytest.mark.long
def test_numbers_of_other_nodes_are_linked(page):
    """A number goes into what may also be auto; what was written before stays where nothing is linked."""
    load(page, graphs.drawn_quickly(graphs.workflow("refine")))
    written = of_refine(page)["lambda3"]
    made = page.evaluate(
        """() => {
            const node = window.app.graph.nodes.find(n => n.type === 'MACE_CFRRefine');
            const links = [];
            for (const [type, value, name] of [['PrimitiveFloat', 7.5, 'mu'], ['PrimitiveInt', 0, 'lambda1']]) {
                const number = window.LiteGraph.createNode(type);
                window.app.graph.add(number);
                number.widgets[0].value = value;
                links.push(!!number.connect(0, node, node.inputs.findIndex(i => i.name === name)));
            }
            return links;
        }"""
    )
    assert made == [True, True]
    inputs = of_refine(page)
    assert isinstance(inputs["mu"], list) and isinstance(inputs["lambda1"], list) and inputs["lambda3"] == written
    press_queue(page)
    said = reports(page)["MACE_CFRRefine"]
    assert "mu 7.5\n" in f"{said}\n" and "lambda1 0\n" in said and f"lambda3 {written}\n" in said


def drag(page, node: str, widget: str, by: int) -> str:
    """Drag a node's widget on the canvas `by` pixels to the right; the value it has then."""
    page.evaluate(
        """type => { const { canvas, graph } = window.app;
            canvas.ds.scale = 1;
            canvas.centerOnNode(graph.nodes.find(n => n.type === type));
            canvas.draw(true, true); }""",
        node,
    )
    x, y = page.evaluate(
        """([type, name]) => {
            const { canvas, graph } = window.app;
            const node = graph.nodes.find(n => n.type === type);
            const widget = node.widgets.find(w => w.name === name);
            const box = canvas.canvas.getBoundingClientRect();
            const [x, y] = canvas.ds.convertOffsetToCanvas([node.pos[0] + 60, node.pos[1] + widget.y + 10]);
            return [box.left + x, box.top + y];
        }""",
        [node, widget],
    )
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + by / 2, y, steps=5)
    page.mouse.move(x + by, y, steps=5)
    page.mouse.up()
    return page.evaluate(
        "([type, name]) => window.app.graph.nodes.find(n => n.type === type).widgets.find(w => w.name === name).value",
        [node, widget],
    )


def test_numbers_that_may_be_auto_are_dragged(page):
    """Weights by decades, counts one by one; what is sent is the text that stands there then."""
    load(page, graphs.workflow("full"))
    node = "MACE_CFRRefine"
    before = of_refine(page)["mu"]
    assert before != "auto"
    up = drag(page, node, "mu", 120)
    assert float(up) == pytest.approx(10 * float(before), rel=0.1) and of_refine(page)["mu"] == up
    assert float(drag(page, node, "mu", -240)) == pytest.approx(0.1 * float(before), rel=0.2)
    training = "MACE_TrainErasureLora"
    steps = "n => n.type === 'MACE_TrainErasureLora'"
    page.evaluate(
        f"() => {{ window.app.graph.nodes.find({steps}).widgets.find(w => w.name === 'steps').value = 'auto'; }}"
    )
    assert drag(page, training, "steps", 36) == "53"
    assert drag(page, training, "steps", -6000) == "1"


def drag_field(page, node: str, widget: str, by: int) -> str:
    """Drag the field of a node that is drawn with Vue `by` pixels to the right; the value it has then."""
    field = page.locator(f'[data-node-id="{node}"] input[aria-label="{widget}"]')
    box = field.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + by / 2, y, steps=5)
    page.mouse.move(x + by, y, steps=5)
    page.mouse.up()
    return field.input_value()


def test_they_are_dragged_where_nodes_are_drawn_with_vue(page):
    """A field is dragged like a number, a click writes in it, and in what is being written a drag selects."""
    load(page, graphs.workflow("full"))
    before = float(of_refine(page)["mu"])
    page.evaluate("window.app.extensionManager.setting.set('Comfy.VueNodes.Enabled', true)")
    try:
        node = page.evaluate(
            """() => { const { canvas, graph } = window.app;
                const node = graph.nodes.find(n => n.type === 'MACE_CFRRefine');
                node.showAdvanced = true;
                canvas.ds.scale = 1;
                canvas.centerOnNode(node);
                return String(node.id); }"""
        )
        field = page.locator(f'[data-node-id="{node}"] input[aria-label="mu"]')
        field.wait_for()
        up = drag_field(page, node, "mu", 120)
        assert float(up) == pytest.approx(10 * before, rel=0.1) and of_refine(page)["mu"] == up
        down = drag_field(page, node, "mu", -240)
        assert float(down) == pytest.approx(0.1 * before, rel=0.2) and of_refine(page)["mu"] == down
        field.click()
        assert field.evaluate("field => field === document.activeElement")
        assert drag_field(page, node, "mu", 60) == down
        field.fill("auto")
        assert of_refine(page)["mu"] == "auto"
        field.blur()
        assert float(drag_field(page, node, "mu", 120)) > 0
    finally:
        page.evaluate("window.app.extensionManager.setting.set('Comfy.VueNodes.Enabled', false)")


def test_a_number_that_is_none_is_marked_before_anything_runs(page):
    load(page, graphs.workflow("refine"))
    page.evaluate(
        """() => { window.app.graph.nodes.find(n => n.type === 'MACE_CFRRefine')
            .widgets.find(w => w.name === 'mu').value = '1e-4x'; }"""
    )
    page.click('[data-testid="queue-button"]')
    page.wait_for_function("window.app.graph.nodes.some(n => n.type === 'MACE_CFRRefine' && n.has_errors)")
    errors = page.evaluate("Object.values(window.app.lastNodeErrors).flatMap(entry => entry.errors)")
    assert any("mu: '1e-4x' is neither auto nor a number" in error["details"] for error in errors)


def blueprint(server) -> dict:
    """What the host hands out as the pack's blueprint."""
    listed = host.get_json(server.url + "/global_subgraphs")
    (key,) = [key for key, entry in listed.items() if entry["name"] == BLUEPRINT]
    assert listed[key]["info"]["node_pack"] == "custom_nodes.mace-comfyui"
    return json.loads(host.get_json(server.url + f"/global_subgraphs/{key}")["data"])


@pytest.mark.long
def test_the_blueprint_is_found_by_search_and_runs(page, server):
    """Placed from the search of nodes, with a loader before it and Save Erased Model behind, it erases."""
    data = blueprint(server)
    (inside,) = data["definitions"]["subgraphs"]
    page.evaluate("window.app.graph.clear()")
    page.evaluate("window.app.extensionManager.command.execute('Workspace.SearchBox.Toggle')")
    page.get_by_placeholder("Add a node...").fill("stage by stage")
    page.get_by_test_id("result-item").get_by_text("Subgraph Blueprints / MACE / erase").wait_for()
    page.keyboard.press("Enter")
    # It hangs at the pointer until it is put down.
    page.wait_for_timeout(1000)
    page.mouse.click(900, 500)
    page.wait_for_function("window.app.graph.nodes.some(n => n.isSubgraphNode?.())")
    shown = page.evaluate(
        """checkpoint => {
            const graph = window.app.graph;
            const node = graph.nodes.find(n => n.isSubgraphNode?.());
            const set = (owner, name, value) => { owner.widgets.find(w => w.name === name).value = value; };
            const loader = window.LiteGraph.createNode('CheckpointLoaderSimple');
            const save = window.LiteGraph.createNode('MACE_SaveErasedModel');
            graph.add(loader); graph.add(save);
            set(loader, 'ckpt_name', checkpoint);
            set(save, 'filename_prefix', 'checkpoints/by_blueprint');
            loader.connect(0, node, 0); loader.connect(1, node, 1); loader.connect(2, node, 2);
            node.connect(0, save, 0); loader.connect(1, save, 1); loader.connect(2, save, 2);
            const names = node.widgets.map(w => w.name);
            set(node, 'concepts', 'dog -> sky');
            set(node, 'seed', 3);
            set(node, 'preserve', 'ship');
            const inner = type => node.subgraph.nodes.find(n => n.type === type);
            for (const [type, values] of [
                ['MACE_ConceptImages', {count: 2, width: 64, height: 64, steps: 12}],
                ['MACE_FindAliases', {words: 'canine, horse', thumbnails: 1}],
                ['MACE_TrainErasureLora', {steps: '2'}],
                ['MACE_Prior', {count: 20}],
            ]) for (const [name, value] of Object.entries(values)) set(inner(type), name, value);
            return names;
        }""",
        graphs.CHECKPOINT,
    )
    promoted = {"find_aliases", "keep_near", "seed", "preserve"}
    assert {"concepts", "type", "settings", "strengths", "preview_prompt", *promoted} <= set(shown)
    prompt = queued(page)
    kinds = sorted(node["class_type"] for node in prompt.values())
    assert kinds == sorted(
        [*(node["type"] for node in inside["nodes"]), "CheckpointLoaderSimple", "MACE_SaveErasedModel"]
    )
    # One seed for pictures, training and preview, as in Erase Concepts.
    seeds = {node["class_type"]: node["inputs"]["seed"] for node in prompt.values() if "seed" in node["inputs"]}
    assert seeds == {"MACE_Prior": 0, "MACE_ConceptImages": 3, "MACE_FindAliases": 0, "MACE_TrainErasureLora": 3}
    (joined,) = [node["inputs"] for node in prompt.values() if node["class_type"] == "StringConcatenate"]
    assert joined["string_a"] == "ship"
    (fuse,) = [node["inputs"] for node in prompt.values() if node["class_type"] == "MACE_FuseLoras"]
    assert fuse["preview_seed"] == 3 and isinstance(fuse["vae"], list)
    outside = page.evaluate(
        """() => { window.app.extensionManager.workflow.activeWorkflow.changeTracker.captureCanvasState();
            return window.app.graph.nodes.find(n => n.isSubgraphNode?.()).id; }"""
    )
    enter(page, outside)
    # When it is entered first the page fits it into the window, where panels are too small to be shown.
    page.wait_for_function("window.app.canvas.ds.scale < 1")
    enter(page, outside)
    slider(page, "dog").wait_for()
    page.evaluate("window.app.canvas.setGraph(window.app.rootGraph)")
    entry = press_queue(page)
    said = json.dumps(entry["outputs"])
    assert "by_blueprint" in said and "1 concepts, 1 LoRAs" in said and "asked in" not in said
    assert '1 concepts to preserve\\n  ship"' in said
    page.evaluate(
        """id => { for (const name of ['find_aliases', 'keep_near'])
            window.app.graph.getNodeById(id).widgets.find(w => w.name === name).value = true; }""",
        outside,
    )
    said = json.dumps(press_queue(page)["outputs"])
    assert "asked in" in said and "dog: canine" in said
    assert re.search(r"[2-9] concepts to preserve\\n  ship, (hot dog, )?horse", said)


@pytest.mark.long
def test_a_picture_dragged_into_a_fresh_page_brings_its_graph(browser, page, server):
    """What the host wrote into a PNG made with the pack loads and runs."""
    workflow = graphs.drawn_quickly(graphs.workflow("refine"))
    for node in workflow["nodes"]:
        if node["type"] == "PreviewImage":
            node["type"], node["widgets_values"] = "SaveImage", ["dragged"]
    load(page, workflow)
    entry = press_queue(page)
    picture = next(image for output in entry["outputs"].values() for image in output.get("images", []))
    assert picture["type"] == "output" and picture["filename"].endswith(".png")
    page = watch(open_page(browser, server.url))
    # The graph that a fresh page begins with must not be taken for the picture's, nor block the page as it comes.
    page.wait_for_function("window.app.graph.nodes.length > 0 && !document.querySelector('.p-blockui-mask')")
    page.evaluate("window.app.graph.nodes.forEach(n => { n.title = 'before the drop'; })")
    page.evaluate(
        """async ({filename, subfolder}) => {
            const found = await fetch(`/view?filename=${filename}&subfolder=${subfolder}&type=output`);
            const carried = new DataTransfer();
            carried.items.add(new File([await found.blob()], filename, {type: 'image/png'}));
            document.querySelector('#graph-canvas').dispatchEvent(
                new DragEvent('drop', {bubbles: true, cancelable: true, dataTransfer: carried}));
        }""",
        picture,
    )
    page.wait_for_function(
        """count => window.app.graph.nodes.length === count &&
            window.app.graph.nodes.every(n => n.title !== 'before the drop')""",
        arg=len(workflow["nodes"]),
    )
    assert page.evaluate("window.app.graph.nodes.filter(n => n.has_errors).length") == 0
    page.evaluate(
        """() => window.app.graph.nodes.filter(n => n.type === 'SaveImage')
            .forEach(n => { n.widgets[0].value = 'dragged_again'; })"""
    )
    again = press_queue(page)
    names = [image["filename"] for output in again["outputs"].values() for image in output.get("images", [])]
    assert names and all(name.startswith("dragged_again") for name in names)
    page.close()
