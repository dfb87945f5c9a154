"""The sliders of Fuse LoRAs and Erase Concepts in ComfyUI's real page."""

import pytest

from devtools.graph import to_prompt
from devtools.pages import load, press_queue
from tests import graphs
from tests.pages import queued, saved, wait_for_pictures, without_titles

pytestmark = pytest.mark.browser

NODE = "const node = window.app.graph.nodes.find(n => ['MACE_FuseLoras', 'MACE_EraseConcepts'].includes(n.type));"
TEXT = "const text = node.widgets.find(w => w.name === 'strengths');"


@pytest.fixture
def page(kept_page):
    """One page for all: every test opens a workflow of its own."""
    return kept_page


def slider(page, name):
    return page.get_by_role("slider", name=f"strength of {name}", exact=True)


def sliders(page):
    """Name and value of every slider on the page, in order."""
    return page.evaluate(
        """() => Object.fromEntries([...document.querySelectorAll('input[aria-label^="strength of "]')].map(
            s => [s.getAttribute('aria-label').slice(12), s.disabled ? null : Number(s.value)]))"""
    )


def text(page):
    return page.evaluate(f"() => {{ {NODE} {TEXT} return text.value; }}")


def write(page, value):
    """As typed into the box."""
    page.evaluate(
        f"""value => {{ {NODE} {TEXT}
            text.element.value = value;
            text.element.dispatchEvent(new Event('input', {{bubbles: true}})); }}""",
        value,
    )


def test_sliders_and_text_are_one(page, server):
    """A slider by keyboard rewrites its line, the text moves the sliders; saved and sent is the text alone."""
    load(page, graphs.workflow("fuse"))
    slider(page, "dog").wait_for()
    assert sliders(page) == {"dog": 1, "ship": 0.5, "airplane": 0}
    slider(page, "ship").press("ArrowLeft")
    assert text(page) == "dog = 1\nship = 0.45\nairplane = 0"
    slider(page, "airplane").press("End")
    assert text(page) == "dog = 1\nship = 0.45" and sliders(page)["airplane"] == 1
    slider(page, "airplane").press("ArrowLeft")
    assert text(page) == "dog = 1\nship = 0.45\nairplane = 0.95"
    write(page, "# mine\nDog=0.3  # a little\nship = 2")
    assert sliders(page) == {"dog": None, "ship": None, "airplane": None}
    assert page.get_by_text("There is an error in the strengths.").is_visible()
    write(page, "# mine\nDog=0.3  # a little\n* = 0.5")
    assert sliders(page) == {"dog": 0.3, "ship": 0.5, "airplane": 0.5}
    slider(page, "dog").press("End")
    slider(page, "ship").press("End")
    expected = "# mine\nDog=1  # a little\n* = 0.5\nship = 1"
    assert text(page) == expected
    prompt = queued(page)
    (fuse,) = (node for node in prompt.values() if node["class_type"] == "MACE_FuseLoras")
    wanted = next(
        n
        for n in to_prompt(graphs.workflow("fuse"), server.client.object_info()).values()
        if n["class_type"] == "MACE_FuseLoras"
    )
    assert fuse["inputs"] == {**wanted["inputs"], "strengths": expected}
    again = saved(page)
    assert without_titles(to_prompt(again, server.client.object_info())) == without_titles(prompt)
    load(page, again)
    slider(page, "ship").wait_for()
    assert sliders(page) == {"Dog": 1, "ship": 1}
    assert without_titles(queued(page)) == without_titles(prompt)
    write(page, "")
    slider(page, "ship").wait_for(state="detached")


@pytest.mark.long
def test_sliders_before_and_after_a_run(page):
    """Without a word in the text: none before the run, all that were fused after it, and what they say is fused."""
    load(page, graphs.drawn_quickly(graphs.workflow("fuse")))
    # The pictures before and after are the next test's.
    page.evaluate(f"() => {{ {NODE} node.widgets.find(w => w.name === 'preview_prompt').value = ''; }}")
    write(page, "")
    assert sliders(page) == {}
    press_queue(page)
    wait_for_pictures(page)
    slider(page, "dog").wait_for()
    names = list(sliders(page))
    assert {"dog", "ship", "airplane", "Twemoji"} <= set(names) and set(sliders(page).values()) == {1}
    slider(page, names[0]).press("Home")
    slider(page, names[1]).press("ArrowLeft")
    press_queue(page)
    page.wait_for_function(
        """words => window.app.graph.nodes.some(n => n.type === 'MACE_FuseLoras' &&
            n.widgets.find(w => w.name === 'report').element.value.includes(words))""",
        arg=f"strengths below 1: {names[0]} 0, {names[1]} 0.95",
    )


def test_a_slider_moves_the_picture_after_and_draws_none_before(page, server):
    """Fuse LoRAs alone, in both renderers."""
    workflow = graphs.drawn_quickly(graphs.workflow("fuse"))
    load(page, workflow)
    page.evaluate(f"() => {{ {NODE} window.app.canvas.ds.scale = 1; window.app.canvas.centerOnNode(node); }}")
    shown = [shown_pictures(press_queue(page), server)]
    page.get_by_role("slider", name="divider between before and after").wait_for()
    slider(page, "ship").press("End")
    shown.append(shown_pictures(press_queue(page), server))
    same_graph = saved(page)
    (before, after), (same, moved) = shown
    assert before == same and len(before) == 2 and after[0] != moved[0] and before[0] != moved[0]
    try:
        page.evaluate("window.app.extensionManager.setting.set('Comfy.VueNodes.Enabled', true)")
        page.wait_for_function("window.LiteGraph.vueNodesMode")
        # As it was fused last, so that it is drawn from what is kept.
        load(page, same_graph)
        page.evaluate(f"() => {{ {NODE} window.app.canvas.ds.scale = 1; window.app.canvas.centerOnNode(node); }}")
        shown = [shown_pictures(press_queue(page), server)]
        page.locator('[data-testid="image-compare-viewport"] img').nth(1).wait_for()
        slider(page, "ship").press("Home")
        shown.append(shown_pictures(press_queue(page), server))
        (again, after), (same, moved) = shown
        assert before == again == same and after[0] != moved[0]
    finally:
        page.evaluate("window.app.extensionManager.setting.set('Comfy.VueNodes.Enabled', false)")


def shown_pictures(entry, server):
    """The files of the pictures before and after in a run's history."""
    (own,) = (output for output in entry["outputs"].values() if "a_images" in output)
    return [[server.client.fetch(image) for image in own[name]] for name in ("a_images", "b_images")]


def test_the_words_of_the_one_node_version_have_sliders(page):
    load(page, graphs.workflow("Erase several things"))
    slider(page, "dog").wait_for()
    assert sliders(page) == {"dog": 1, "airplane": 1, "ship": 1}
    page.evaluate(
        f"""() => {{ {NODE} const words = node.widgets.find(w => w.name === 'words');
            words.element.value = 'dog\\nhot air balloon -> sky # high up';
            words.element.dispatchEvent(new Event('input', {{bubbles: true}})); }}"""
    )
    slider(page, "hot air balloon").wait_for()
    assert sliders(page) == {"dog": 1, "hot air balloon": 1}


def test_sliders_follow_the_words_and_undo(page):
    """A concept that is no longer named has no slider, though a run knew it and its slider was moved."""
    load(page, graphs.workflow("Erase several things"))
    slider(page, "dog").press("Home")
    slider(page, "ship").press("Home")
    assert text(page) == "dog = 0\nship = 0"
    # In a field, undo is the field's own.
    page.evaluate("document.activeElement.blur()")
    for wanted in ("dog = 0", ""):
        page.keyboard.press("Control+z")
        page.wait_for_function(f"wanted => {{ {NODE} {TEXT} return text?.value === wanted; }}", arg=wanted)
    slider(page, "dog").wait_for()
    slider(page, "dog").press("Home")
    slider(page, "dog").press("End")
    page.evaluate(
        f"""() => {{ {NODE} const output = {{ concepts: [['dog', 1], ['airplane', 1], ['ship', 1]] }};
            const told = {{ node: String(node.id), display_node: String(node.id), output }};
            window.app.api.dispatchCustomEvent('executed', told);
            node.widgets.find(w => w.name === 'words').value = 'cat'; }}"""
    )
    assert sliders(page) == {"cat": 1} and text(page) == ""


def test_concepts_are_found_through_reroutes_and_bypassed_nodes(page):
    """A Reroute and a bypassed Concepts node stand between a list and the erasure."""
    load(page, graphs.workflow("quick"))
    page.evaluate(
        f"""() => {{ {NODE} const {{ graph }} = window.app;
            const concepts = graph.nodes.find(n => n.type === 'MACE_Concepts');
            const [reroute, bypassed] = ['Reroute', 'MACE_Concepts'].map(type => window.LiteGraph.createNode(type));
            graph.add(reroute);
            graph.add(bypassed);
            concepts.widgets.find(w => w.name === 'concepts').value = 'horse';
            bypassed.widgets.find(w => w.name === 'concepts').value = 'cow';
            bypassed.mode = 4;
            node.widgets.find(w => w.name === 'words').value = '';
            concepts.connect(0, reroute, 0);
            reroute.connect(0, bypassed, bypassed.findInputSlot('more'));
            bypassed.connect(0, node, node.findInputSlot('concepts')); }}"""
    )
    assert sliders(page) == {"horse": 1}


def test_the_names_of_the_list_in_the_graph(page):
    """Concepts nodes before the fusion name the sliders, also as they are being written; a hundred stay usable."""
    load(page, graphs.workflow("full"))
    # All of it at once is too small for anything but boxes.
    page.evaluate(f"() => {{ {NODE} window.app.canvas.ds.scale = 1; window.app.canvas.centerOnNode(node); }}")
    slider(page, "dog").wait_for()
    assert set(sliders(page)) == {"dog", "airplane", "ship", "Twemoji"} and text(page) == ""
    page.evaluate(
        """lines => { window.app.graph.nodes.find(n => n.type === 'MACE_Concepts').widgets.find(
            w => w.name === 'concepts').value = lines; }""",
        "\n".join(f"thing {number} | it {number} -> sky  # one" for number in range(100)),
    )
    assert len(sliders(page)) == 101
    page.get_by_role("searchbox", name="filter concepts").fill("thing 42")
    assert page.get_by_role("slider").count() == 1
    slider(page, "thing 42").fill("0.5")
    assert text(page) == "thing 42 = 0.5"
    heights = page.evaluate(
        f"() => {{ {NODE} return node.widgets.find(w => w.name === 'strength sliders').computeLayoutSize(node); }}"
    )
    assert heights["minHeight"] < 250 and heights["maxHeight"] < 400
