"""The concept table as a part of its node in ComfyUI's real page: the text, copies, subgraphs, links, size and zoom."""

import pytest

from devtools.pages import load
from mace.presets.presets import PAPER
from tests import graphs
from tests.pages import saved
from tests.tables import DRAWN, FOUND, LINES, button, cell, new_concept, place, sent, text

pytestmark = pytest.mark.browser
pytest_plugins = ["tests.tables"]


@pytest.fixture(scope="module")
def page(table_page):
    return table_page


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
