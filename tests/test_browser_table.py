"""The rows of the concept table in ComfyUI's real page: by keyboard, by mouse, pasted, searched, and their errors."""

import pytest

from mace.concepts.concept import comma_lines, lines_error
from mace.concepts.lists import PAPER_LISTS
from tests.tables import LINES, becomes, button, cell, errors, focused, new_concept, place, sent, text

pytestmark = pytest.mark.browser
pytest_plugins = ["tests.tables"]


@pytest.fixture(scope="module")
def page(table_page):
    return table_page


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


def test_a_row_has_a_type_of_its_own(page):
    """Chosen by keyboard, shown of a typed line, taken off again; what is not chosen is the node's."""
    place(page)
    kind = page.get_by_label("type of ship")
    assert kind.input_value() == "" and kind.locator("option").first.text_content() == "(object)"
    cell(page, "mapping of ship").click()
    page.keyboard.press("Tab")
    assert focused(page) == "type of ship"
    page.keyboard.type("style")
    assert text(page) == LINES.replace("ship | boat", "[style] ship | boat") and focused(page) == "type of ship"
    assert "style" not in sent(page)["inputs"]["type"]
    cell(page, "mapping of ship").fill("")
    assert cell(page, "mapping of ship").get_attribute("placeholder") == "art"
    cell(page, "aliases of ship").fill("")
    page.keyboard.press("Tab")
    kind.select_option("explicit")
    assert text(page) == LINES.replace("ship | boat -> ground", "[explicit] ship")
    kind.select_option("")
    assert text(page) == LINES.replace("ship | boat -> ground", "ship")
    # A press on the empty canvas: in a field, undo is the field's own.
    page.mouse.click(300, 800)
    page.keyboard.press("Control+z")
    becomes(page, LINES.replace("ship | boat -> ground", "[explicit] ship"))
    page.get_by_label("type of new concept").select_option("style")
    new_concept(page).fill("Monet")
    page.keyboard.press("Enter")
    assert text(page).endswith("\n[style] Monet")
    new_concept(page).fill("[celebrity] Ann | Annie")
    page.keyboard.press("Enter")
    assert page.get_by_label("type of Ann").input_value() == "celebrity" and cell(page, "target: Ann").is_visible()
    new_concept(page).fill("[stile] dogs")
    page.keyboard.press("Enter")
    assert errors(page)[0].startswith("[stile] is no type; write one of [object],")


def test_keys_of_an_input_method_do_nothing_to_rows(page):
    """While it composes, Enter and arrows choose among its candidates; what it gives at the end is in the row."""
    place(page, "cat\ndog")
    new_concept(page).click()
    method = page.context.new_cdp_session(page)
    method.send("Input.imeSetComposition", {"text": "\u3044\u306c", "selectionStart": 2, "selectionEnd": 2})
    assert text(page) == "cat\ndog\n\u3044\u306c" and focused(page) == "target: \u3044\u306c"
    page.evaluate(
        "addEventListener('keydown', pressed => { window.composing = pressed.isComposing; }, {capture: true})"
    )
    for key in ("Enter", "ArrowUp", "Alt+ArrowUp", "ArrowDown"):
        page.keyboard.press(key)
        assert page.evaluate("window.composing") is True
        assert text(page) == "cat\ndog\n\u3044\u306c" and focused(page) == "target: \u3044\u306c"
    method.send("Input.insertText", {"text": "\u72ac"})
    assert text(page) == "cat\ndog\n\u72ac" and page.locator(":focus").input_value() == "\u72ac"
    page.keyboard.press("Enter")
    assert focused(page) == "target: new concept" and page.evaluate("window.composing") is False
    method.detach()


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


@pytest.mark.parametrize(
    "pressed, becomes_text, focuses",
    [
        ("remove dog", "cat\nship", "remove cat"),
        ("dog on", "\ncat\nship", None),
        ("cat on", '\n# "cat"\nship', "cat on"),
        ("target: cat", "\ncat\nship", "target: cat"),
    ],
)
def test_a_press_after_a_cell_is_emptied_acts_on_what_stood_there(page, pressed, becomes_text, focuses):
    place(page, "dog\ncat\nship")
    cell(page, "target: dog").fill("")
    box = page.get_by_label(pressed, exact=True).bounding_box()
    page.mouse.click(box["x"] + 5, box["y"] + 8)
    becomes(page, becomes_text)
    cell(page, "target: dog").wait_for(state="detached")
    assert focused(page) == focuses


def test_a_word_alone_is_switched_off_and_stays_a_row(page):
    place(page, "dog\ncat # mine\nship -> ground")
    toggle = page.get_by_role("checkbox", name="dog on")
    toggle.click()
    page.get_by_role("checkbox", name="cat on").click()
    assert text(page) == '# "dog"\n# "cat" # mine\nship -> ground'
    assert toggle.get_attribute("aria-checked") == "false" and cell(page, "target: dog").input_value() == "dog"
    assert page.get_by_text("1 concept, 2 off", exact=True).is_visible()
    cell(page, "mapping of dog").fill("sky")
    cell(page, "mapping of dog").fill("")
    page.keyboard.press("Enter")
    assert text(page).startswith('# "dog"\n') and toggle.get_attribute("aria-checked") == "false"
    toggle.click()
    page.get_by_role("checkbox", name="cat on").click()
    assert text(page) == "dog\ncat # mine\nship -> ground"


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
    assert text(page).endswith("\n[object] airplane -> ground") and sent(page)["inputs"]["type"] == "celebrity"
    page.get_by_role("searchbox").fill("")
    button(page, "remove airplane").click()
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
    cell(page, "target: cat > mouse").fill("cat, mouse")
    (hint,) = errors(page)
    assert hint == comma_lines(text(page))[0].removeprefix("line 4: ")
    assert cell(page, "target: cat > mouse").get_attribute("aria-invalid") == "false"
    cell(page, "target: cat > mouse").fill("cat")
    page.keyboard.press("Enter")
    assert errors(page) == [] and text(page) == "dog -> sky\nship -> a\n# note\ncat\nairplane"
    # What is usual for the type shows where nothing is written.
    assert cell(page, "mapping of airplane").get_attribute("placeholder") == "ground"
