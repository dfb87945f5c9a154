"""The candidates on Find Aliases in ComfyUI's real page: by mouse and keyboard, in both renderers."""

import pytest

from devtools.graph import to_prompt
from devtools.pages import load, press_queue
from mace.concepts.subjects import parse_chosen
from mace.concepts.text import normalised
from tests import graphs
from tests.pages import or_refused, parsed_in_page, queued, reports, saved, without_titles

pytestmark = pytest.mark.browser

NODE = "const node = window.app.graph.nodes.find(n => n.type === 'MACE_FindAliases');"
MODULE = "import('/extensions/mace-comfyui/chosen_text.js')"

LINES = [
    "",
    "deer",
    "deer |",
    "deer | stag, hart\n\n# none\nDog: hound, Hound,, pooch # mine",
    '"a | b" | "c, d", e\r\nC# | x',
    "| stag",
    "deer | {x}",
    "deer | a | b",
    "deer: a: b",
    "deer | a\nDEER | b",
    "dog | a > b",
    "cat\uff5ckitty\u3001feline",
]


@pytest.fixture(scope="module")
def page(kept_page):
    """The example after a run of few words, which later runs of it find kept."""
    open_example(kept_page)
    press_queue(kept_page)
    return kept_page


def open_example(page, chosen=""):
    needed = ("MACE_Concepts", "MACE_ConceptImages", "MACE_FindAliases", "CheckpointLoaderSimple")
    workflow = graphs.asked_for(graphs.only(graphs.workflow("aliases"), *needed), "MACE_FindAliases", "lines")
    for node in workflow["nodes"]:
        if node["type"] == "MACE_ConceptImages":
            # One picture, in few steps.
            node["widgets_values"][0], node["widgets_values"][4] = 1, 6
        if node["type"] == "MACE_FindAliases":
            # Few words, three of them drawn.
            node["widgets_values"] = ["stag, hart, horse, ship", "", 300, 0.5, 8, 1, 0, 8, 3, chosen]
    load(page, workflow)
    page.evaluate(f"() => {{ {NODE} window.app.canvas.ds.scale = 1; window.app.canvas.centerOnNode(node); }}")


def ticked(page):
    """The words of the page's boxes, in order, and whether they are ticked."""
    return page.evaluate(
        """() => Object.fromEntries([...document.querySelectorAll('[aria-label="candidates for deer"] input')].map(
            box => [box.getAttribute('aria-label').replace(' for deer', ''), box.checked]))"""
    )


def chosen(page):
    return page.evaluate(f"() => {{ {NODE} return node.widgets.find(w => w.name === 'chosen').value; }}")


def test_boxes_and_text_are_one_and_what_is_ticked_is_used(page, server):
    page.get_by_role("group", name="candidates for deer").wait_for()
    first = ticked(page)
    assert set(first) == {"stag", "hart", "horse", "ship"} and [first[w] for w in ("stag", "horse")] == [True, False]
    pictures = page.get_by_role("group", name="candidates for deer").get_by_role("img")
    # The concept's own, and the three best.
    assert pictures.count() == 4
    for place in range(4):
        handle = pictures.nth(place).element_handle()
        page.wait_for_function("image => image.naturalWidth > 0", arg=handle)
    page.get_by_role("checkbox", name="horse for deer").click()
    with_horse = "deer | " + ", ".join([*(word for word, on in first.items() if on), "horse"])
    assert chosen(page) == with_horse
    page.get_by_role("checkbox", name="stag for deer").press("Space")
    assert "stag" not in chosen(page) and ticked(page)["stag"] is False
    press_queue(page)
    said = reports(page)["MACE_FindAliases"]
    assert said.startswith("deer: hart ") and "horse " in said and "(chosen); then stag " in said
    assert "asked in" not in said and ticked(page) == {**first, "stag": False, "horse": True}
    prompt = queued(page)
    (find,) = (node for node in prompt.values() if node["class_type"] == "MACE_FindAliases")
    assert find["inputs"]["chosen"] == "deer | hart, horse"
    assert not any("candidates" in name for name in find["inputs"])
    assert without_titles(to_prompt(saved(page), server.client.object_info())) == without_titles(prompt)
    page.get_by_role("button", name="as found").click()
    assert chosen(page) == "" and ticked(page) == first
    for wanted in ("deer | hart, horse", with_horse, ""):
        page.keyboard.press("Control+z")
        page.wait_for_function(
            f"wanted => {{ {NODE} return node?.widgets.find(w => w.name === 'chosen').value === wanted; }}", arg=wanted
        )


def test_near_words_that_are_ticked_are_given_out(page):
    """All are at first; a box takes one away, the text says so, and the next run gives out the others."""
    open_example(page)
    press_queue(page)
    group = page.get_by_role("group", name="near, and no aliases: to be kept")
    group.wait_for()
    boxes = group.get_by_role("checkbox")
    labels = [box.get_attribute("aria-label") for box in boxes.all()]
    assert labels == ["keep horse", "keep ship"] and all(box.is_checked() for box in boxes.all())
    page.get_by_role("checkbox", name="keep ship").click()
    assert chosen(page).strip('"').startswith("*") and chosen(page).endswith("| horse")
    press_queue(page)
    assert reports(page)["MACE_FindAliases"].splitlines()[1] == "near, and no aliases: horse"
    assert not page.get_by_role("checkbox", name="keep ship").is_checked()
    page.get_by_role("checkbox", name="keep ship").press("Space")
    assert chosen(page) == "" and page.get_by_role("checkbox", name="keep ship").is_checked()


def test_a_text_with_an_error_and_words_of_ones_own(page):
    open_example(page, chosen='deer | elk, "a, b"  # mine')
    press_queue(page)
    page.get_by_role("checkbox", name="elk for deer").wait_for()
    shown = ticked(page)
    assert shown == {"hart": False, "stag": False, "horse": False, "ship": False, "elk": True, "a, b": True}
    page.get_by_role("checkbox", name="elk for deer").click()
    assert chosen(page) == 'deer | "a, b" # mine'
    page.evaluate(
        f"""() => {{ {NODE} const text = node.widgets.find(w => w.name === 'chosen');
            text.element.value = 'deer | a | b';
            text.element.dispatchEvent(new Event('input', {{bubbles: true}})); }}"""
    )
    assert page.get_by_text("There is an error in the chosen words.").is_visible()
    assert page.get_by_role("checkbox", name="hart for deer").is_disabled()


def test_where_nodes_are_drawn_with_vue(page):
    try:
        page.evaluate("window.app.extensionManager.setting.set('Comfy.VueNodes.Enabled', true)")
        page.wait_for_function("window.LiteGraph.vueNodesMode")
        open_example(page)
        press_queue(page)
        box = page.get_by_role("checkbox", name="horse for deer")
        box.wait_for()
        before = box.is_checked()
        box.click()
        assert not before and "horse" in chosen(page) and ticked(page)["horse"]
    finally:
        page.evaluate("window.app.extensionManager.setting.set('Comfy.VueNodes.Enabled', false)")


def test_in_a_subgraph(page):
    open_example(page)
    page.evaluate(
        f"""() => {{ {NODE} const {{ subgraph }} = window.app.graph.convertToSubgraph(new Set([node]));
            window.app.canvas.setGraph(subgraph);
            window.app.canvas.ds.scale = 1;
            window.app.canvas.centerOnNode(subgraph.nodes[0]); }}"""
    )
    press_queue(page)
    box = page.get_by_role("checkbox", name="horse for deer")
    box.click()
    written = page.evaluate("window.app.canvas.graph.nodes[0].widgets.find(w => w.name === 'chosen').value")
    assert box.is_checked() and "horse" in written


def test_the_page_reads_what_is_chosen_as_the_node_does(page):
    def read(text):
        return {normalised(target): words for target, words in parse_chosen(text).items()}

    found = parsed_in_page(page, f"(await {MODULE}).parseChosen", "words", LINES)
    assert found == {text: or_refused(read, text) for text in LINES}


def test_a_concepts_line_is_rewritten_alone(page):
    """(text, target, words or none, what becomes of it)."""
    cases = [
        ("", "deer", ["stag"], "deer | stag"),
        ("", "deer", [], "deer"),
        ("", "deer", None, ""),
        ("dog | hound", "deer", ["a, b", "hart"], 'dog | hound\ndeer | "a, b", hart'),
        ("dog | hound  # one\nDeer | stag", "deer", ["hart"], "dog | hound  # one\ndeer | hart"),
        ("# top\ndeer | stag # x\ndog", "Deer", [], "# top\nDeer # x\ndog"),
        ("# top\ndeer | stag\ndog", "deer", None, "# top\ndog"),
        ("deer\ndog", "deer", None, "dog"),
        ("a | b | c", "deer", ["hart"], "a | b | c"),
    ]
    found = page.evaluate(
        f"""async cases => {{ const {{ withChosen }} = await {MODULE};
            return cases.map(([text, target, words]) => withChosen(text, target, words)); }}""",
        [case[:3] for case in cases],
    )
    assert found == [case[3] for case in cases]
