"""The concept table of Concepts and Erase Concepts in ComfyUI's real page, as it draws nodes in both ways."""

import pytest

from mace.concepts.concept import lines_error
from mace.concepts.lists import PAPER_LISTS
from mace.presets.presets import PAPER
from tests import graphs
from tests.pages import load, queued, saved

pytestmark = pytest.mark.browser

FOUND = "window.app.canvas.graph.nodes.find(node => node.type.startsWith('MACE_') && node.maceTable)"
VALUE = f"const node = {FOUND}; const value = node?.widgets.find(w => w.name === node.maceTable.field).value;"
# Two frames: what is to be drawn is.
DRAWN = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
LINES = "# animals\ndog -> sky  # mine\n\nship | boat -> ground\n# cat -> forest"


@pytest.fixture(scope="module", params=["classic", "Vue"])
def page(kept_page, request):
    """One page for all, its errors recorded."""
    vue = str(request.param == "Vue").lower()
    errors = []
    kept_page.on("pageerror", lambda error: errors.append(str(error)))
    kept_page.on(
        "console", lambda said: errors.append(f"{said.text} {said.location}") if said.type == "error" else None
    )
    kept_page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    kept_page.evaluate(f"window.app.extensionManager.setting.set('Comfy.VueNodes.Enabled', {vue})")
    kept_page.wait_for_function(f"Boolean(window.LiteGraph.vueNodesMode) === {vue}")
    yield kept_page
    kept_page.evaluate("window.app.extensionManager.setting.set('Comfy.VueNodes.Enabled', false)")
    assert [error for error in errors if "mace" in error.lower()] == []


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


def test_rows_by_keyboard(page):
    """Typed, tabbed, entered, moved and removed; what else stands in the text stays."""
    place(page)
    new_concept(page).click()
    page.keyboard.type("hot dog")
    page.keyboard.press("Tab")
    page.keyboard.type("frankfurter, wiener")
    page.keyboard.press("Tab")
    page.keyboard.type("bun")
    page.keyboard.press("Enter")
    added = LINES + "\nhot dog | frankfurter, wiener -> bun"
    assert text(page) == added and focused(page) == "target: new concept"
    page.keyboard.type("frog -> pond # a line")
    page.keyboard.press("Enter")
    assert text(page) == added + "\nfrog -> pond # a line" and cell(page, "mapping of frog").input_value() == "pond"
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Alt+ArrowUp")
    assert text(page) == LINES + "\nfrog -> pond # a line\nhot dog | frankfurter, wiener -> bun"
    assert focused(page) == "target: frog"
    cell(page, "aliases of ship").fill("")
    cell(page, "mapping of ship").fill("a # b")
    page.keyboard.press("Enter")
    assert '\n\nship -> "a # b"\n# cat -> forest\n' in text(page)
    button(page, "move ship").focus()
    page.keyboard.press("ArrowUp")
    assert focused(page) == "move ship"
    # On the canvas this key would take the node away.
    page.keyboard.press("Delete")
    assert text(page).startswith('# animals\nship -> "a # b"\ndog -> sky  # mine\n\n# cat -> forest')
    cell(page, "target: ship").fill("")
    cell(page, "mapping of ship").fill("")
    page.keyboard.press("Backspace")
    assert text(page).startswith("# animals\ndog -> sky  # mine\n\n# cat -> forest\nfrog")


def test_rows_by_mouse_and_undo(page):
    place(page)
    page.get_by_role("checkbox", name="dog on").click()
    page.get_by_role("checkbox", name="cat on").click()
    page.get_by_role("checkbox", name="# animals on").click()
    steps = [LINES.replace("dog", "# dog"), LINES.replace("dog", "# dog").replace("# cat", "cat")]
    assert text(page) == steps[1].replace("# animals", "animals")
    assert page.get_by_role("checkbox", name="dog on").get_attribute("aria-checked") == "false"
    for wanted in (steps[1], steps[0], LINES):
        page.keyboard.press("Control+z")
        becomes(page, wanted)
    page.keyboard.press("Control+y")
    becomes(page, steps[0])
    page.keyboard.press("Control+z")
    becomes(page, LINES)
    handle, top = button(page, "move ship").bounding_box(), cell(page, "target: dog").bounding_box()
    page.mouse.move(handle["x"] + 4, handle["y"] + 6)
    page.mouse.down()
    page.mouse.move(handle["x"] + 6, top["y"] + 2, steps=4)
    page.mouse.up()
    moved = "# animals\nship | boat -> ground\ndog -> sky  # mine\n\n# cat -> forest"
    assert text(page) == moved and focused(page) == "move ship"
    button(page, "remove dog").click()
    assert text(page) == "# animals\nship | boat -> ground\n\n# cat -> forest" and focused(page) == "remove cat"
    page.keyboard.press("Control+z")
    becomes(page, moved)


def test_many_lines_are_pasted(page):
    place(page, "dog")

    def paste(into, lines):
        page.evaluate("lines => navigator.clipboard.writeText(lines)", lines)
        into.click()
        page.keyboard.press("Control+v")

    paste(new_concept(page), "cat | kitty -> forest\n\n# mine\nship # blue\n")
    assert text(page) == "dog\ncat | kitty -> forest\n# mine\nship # blue" and focused(page) == "target: ship"
    paste(cell(page, "mapping of dog"), "1. frog -> pond\r\n2. bird")
    pasted = "dog\nfrog -> pond\nbird\ncat | kitty -> forest\n# mine\nship # blue"
    assert text(page) == pasted and cell(page, "mapping of frog").input_value() == "pond"
    paste(new_concept(page), "horse -> field # one line")
    page.keyboard.press("Enter")
    assert text(page) == pasted + "\nhorse -> field # one line"
    assert page.evaluate("window.app.graph.nodes.length") == 1


def test_the_papers_lists_are_searched(page):
    place(page, "# nobody yet")
    button(page, "paper's lists").click()
    assert button(page, "add all: 100 artists").is_enabled()
    page.keyboard.type("adam d")
    button(page, "add Adam Driver").click()
    assert text(page) == "# nobody yet\nAdam Driver -> a person"
    assert sent(page)["inputs"]["type"] == "celebrity"
    assert button(page, "add Adam Driver").is_disabled()
    page.get_by_role("searchbox").fill("airplane")
    button(page, "add airplane").click()
    assert page.get_by_text("The lines of this node are of type celebrity. Take a Concepts node").is_visible()
    page.get_by_role("searchbox").fill("")
    button(page, "add all: 5 celebrities").click()
    assert text(page).splitlines()[1:] == [f"{name} -> a person" for name, _, _ in PAPER_LISTS["5 celebrities"]]
    page.keyboard.press("Escape")
    assert not page.get_by_role("searchbox").is_visible()


def test_errors_stand_at_their_rows(page, server):
    place(page, "dog -> sky\nship -> a -> b\n# note\ncat > mouse\nairplane")
    wanted = lines_error(text(page))
    assert wanted == f"concepts: line 2: {errors(page)[0]}" and len(errors(page)) == 2
    assert cell(page, "target: ship").get_attribute("aria-invalid") == "true"
    server_says = page.evaluate(
        """async () => {
            const { output } = await window.app.graphToPrompt();
            const said = await window.app.api.fetchApi('/prompt', {method: 'POST', body: JSON.stringify({prompt: {
                ...output, preview: {class_type: 'PreviewAny', inputs: {source: [Object.keys(output)[0], 0]}}}})});
            return JSON.stringify(await said.json()); }"""
    )
    assert wanted.partition(": line 2: ")[2].split(";")[0] in server_says
    cell(page, "mapping of ship").fill("a")
    cell(page, "target: cat > mouse").fill("dog")
    assert errors(page) == ["'dog' already stands in line 1; remove one of them"]
    cell(page, "target: cat > mouse").fill("cat")
    page.keyboard.press("Enter")
    assert errors(page) == [] and text(page) == "dog -> sky\nship -> a\n# note\ncat\nairplane"
    # What is usual for the type shows where nothing is written.
    assert cell(page, "mapping of airplane").get_attribute("placeholder") == "ground"


def test_text_and_table(page):
    """A button shows the text, which is what is saved and sent; the choice is the node's own."""
    place(page)
    shown = page.locator(".comfy-multiline-input, [data-testid='node-widgets'] textarea").first
    assert not shown.is_visible()
    button(page, "show as text").click()
    shown.wait_for()
    assert shown.input_value() == LINES and not new_concept(page).is_visible()
    shown.fill("horse -> field\n# end")
    node = saved(page)["nodes"][0]
    assert node["widgets_values"] == ["horse -> field\n# end", "object", "none", "none", PAPER]
    load(page, saved(page))
    button(page, "show as a table").click()
    assert cell(page, "mapping of horse").input_value() == "field" and not shown.is_visible()
    again = saved(page)["nodes"][0]
    assert again["widgets_values"] == node["widgets_values"] and "concepts as text" not in again["properties"]
    assert sent(page)["inputs"]["concepts"] == "horse -> field\n# end"


def test_copies_and_subgraphs(page):
    """A copied node has a table of its own; in a subgraph too; an input of a subgraph shows the text."""
    place(page, "dog")
    page.evaluate(
        """() => { const { canvas } = window.app; canvas.selectItems([...canvas.graph.nodes]);
            canvas.copyToClipboard(); canvas.pasteFromClipboard({position: [1000, 150]}); }"""
    )
    new_concept(page).nth(1).wait_for()
    new_concept(page).nth(1).fill("cat")
    values = [node["widgets_values"] for node in saved(page)["nodes"]]
    assert sorted(values) == [["dog", "object", "none", "none", PAPER], ["dog\ncat", "object", "none", "none", PAPER]]
    place(page, "dog")
    page.evaluate(
        f"""async () => {{ const {{ app }} = window;
            const {{ subgraph }} = app.graph.convertToSubgraph(new Set(app.graph.nodes));
            await {DRAWN};
            app.canvas.setGraph(subgraph); app.canvas.ds.scale = 1; app.canvas.ds.offset = [0, 0]; }}"""
    )
    new_concept(page).fill("ship")
    page.keyboard.press("Enter")
    inner = saved(page)["definitions"]["subgraphs"][0]["nodes"][0]
    assert text(page) == "dog\nship" and inner["widgets_values"] == ["dog\nship", "object", "none", "none", PAPER]
    page.evaluate(
        f"""() => {{ const node = {FOUND}; const input = node.graph.addInput('concepts', 'STRING');
            input.connect(node.inputs.find(own => own.name === 'concepts'), node);
            window.app.canvas.setDirty(true, true); }}"""
    )
    page.locator(".mace-bar:visible", has_text="The lines come from another node.").wait_for()
    assert not new_concept(page).is_visible()
    page.evaluate(
        f"""async () => {{ const {{ canvas, rootGraph }} = window.app;
            await {DRAWN};
            canvas.setGraph(rootGraph);
            canvas.centerOnNode(rootGraph.nodes[0]); }}"""
    )
    outer = page.locator(".comfy-multiline-input:visible, [data-testid='node-widgets'] textarea").first
    outer.wait_for()
    outer.fill("horse")
    assert sent(page)["inputs"]["concepts"] == "horse"


def test_a_linked_text_has_no_table(page):
    place(page, "dog")
    page.evaluate(
        f"""() => {{ const node = {FOUND}; const text = LiteGraph.createNode('PrimitiveStringMultiline');
            node.graph.add(text); text.pos = [0, 150];
            text.connect(0, node, node.inputs.findIndex(own => own.name === 'concepts')); }}"""
    )
    page.locator(".mace-bar:visible", has_text="The lines come from another node.").wait_for()
    assert not new_concept(page).is_visible() and not button(page, "show as text").is_visible()
    page.evaluate(f"() => {{ const node = {FOUND}; node.disconnectInput('concepts'); }}")
    new_concept(page).wait_for()
    assert text(page) == "dog"


def test_the_words_of_the_one_node_version(page):
    """Its table stands where the text is, the saved values where they were; strengths are among the advanced inputs."""
    load(page, graphs.workflow("Erase one object"))
    before = next(node for node in saved(page)["nodes"] if node["type"] == "MACE_EraseConcepts")["widgets_values"]
    wanted = graphs.workflow("Erase one object")["nodes"]
    assert before == next(node for node in wanted if node["type"] == "MACE_EraseConcepts")["widgets_values"]
    page.evaluate(f"() => {{ window.app.canvas.ds.scale = 1; window.app.canvas.centerOnNode({FOUND}); }}")
    new_concept(page).fill("hot air balloon")
    page.keyboard.press("Enter")
    page.get_by_role("slider", name="strength of hot air balloon").wait_for()
    after = next(node for node in saved(page)["nodes"] if node["type"] == "MACE_EraseConcepts")["widgets_values"]
    assert after == [f"{own}\nhot air balloon" if i == 6 else own for i, own in enumerate(before)]
    # Only where the page draws nodes with Vue does it put them away.
    assert page.evaluate(f"{FOUND}.widgets.find(w => w.name === 'strengths').options.advanced") is True
    if page.evaluate("window.LiteGraph.vueNodesMode"):
        assert page.get_by_label("strengths", exact=True).locator("textarea").count() == 0


def test_narrow_light_and_far_away(page):
    """In 210 pixels no cell leaves the node, the theme's colours are taken, and what is dragged follows the zoom."""
    place(page, LINES, width=210)
    root = page.locator(".mace-concepts")
    inside = """root => { const box = root.getBoundingClientRect();
        return [...root.querySelectorAll('input, button')].filter(e => e.offsetParent).every(e => {
            const own = e.getBoundingClientRect();
            return own.left >= box.left - 1 && own.right <= box.right + 1; }); }"""
    assert root.evaluate(inside) and not cell(page, "aliases of ship").is_visible()
    cell(page, "target: ship").focus()
    assert cell(page, "aliases of ship").is_visible() and root.evaluate(inside)
    outline = "element => getComputedStyle(element).outlineStyle"
    page.keyboard.press("Shift+Tab")
    assert page.locator(":focus").evaluate(outline) == "solid"
    colours = "root => [getComputedStyle(root).color, getComputedStyle(root).backgroundColor]"
    dark = root.evaluate(colours)
    page.evaluate("window.app.extensionManager.setting.set('Comfy.ColorPalette', 'light')")
    shown = f"({colours})(document.querySelector('.mace-concepts'))"
    page.wait_for_function(f"dark => {shown}.every((colour, i) => colour !== dark[i])", arg=dark)
    page.evaluate("window.app.extensionManager.setting.set('Comfy.ColorPalette', 'dark')")
    page.evaluate("() => { window.app.canvas.ds.scale = 0.8; window.app.canvas.setDirty(true, true); }")
    page.wait_for_function("document.querySelector('.mace-concepts').getBoundingClientRect().width < 190")
    handle, top = button(page, "move ship").bounding_box(), cell(page, "target: dog").bounding_box()
    page.mouse.move(handle["x"] + 4, handle["y"] + 6)
    page.mouse.down()
    page.mouse.move(handle["x"] + 4, top["y"] + 1, steps=4)
    page.mouse.up()
    assert text(page).splitlines()[1] == "ship | boat -> ground"
