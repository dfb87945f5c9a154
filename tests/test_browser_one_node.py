"""Erase Concepts in ComfyUI's real page, to its end, in both renderers."""

import pytest

from devtools.pages import load, press_queue
from tests import graphs
from tests.pages import reports, use_vue
from tests.test_browser_strengths import NODE, slider, sliders, text

pytestmark = pytest.mark.browser


@pytest.mark.long
@pytest.mark.parametrize("vue", [False, True], ids=["classic", "Vue"])
def test_it_runs_has_sliders_and_shows_before_and_after(kept_page, vue):
    """The live losses make room for the pictures before and after."""
    page = kept_page
    use_vue(page, vue)
    load(page, graphs.drawn_quickly(graphs.workflow("quick")))
    slider(page, "dog").wait_for()
    assert sliders(page) == {"dog": 1} and text(page) == ""
    slider(page, "dog").press("ArrowLeft")
    assert text(page) == "dog = 0.95"
    page.evaluate(
        f"""seed => {{ {NODE} const set = (name, value) => {{ node.widgets.find(w => w.name === name).value = value; }};
            // Another seed, so that it trains.
            set('preview_prompt', 'a photo of the dog'); set('seed', seed);
            window.live = 0;
            window.app.api.addEventListener('b_preview_with_metadata', () => {{ window.live += 1; }}); }}""",
        int(vue),
    )
    press_queue(page, 1800)
    fused = page.evaluate(f"() => {{ {NODE} return window.app.nodeOutputs[node.id].concepts; }}")
    assert fused == [["dog", 0.95]]
    said = reports(page)
    assert "1 LoRAs trained" in said["MACE_EraseConcepts"] or "kept from before" in said["MACE_EraseConcepts"]
    assert "mace_demo_quick" in said["MACE_SaveErasedModel"]
    page.evaluate(f"() => {{ {NODE} window.app.canvas.ds.scale = 1; window.app.canvas.centerOnNode(node); }}")
    if vue:
        viewport = page.locator('[data-testid="image-compare-viewport"]')
        viewport.locator("img").nth(1).wait_for()
        assert viewport.evaluate("element => element.offsetHeight") >= 220
    left = page.evaluate(
        f"() => {{ {NODE} return [node.imgs, window.app.nodePreviewImages[node.id]].filter(Boolean).length; }}"
    )
    assert page.evaluate("window.live") > 0 and left == 0
    assert page.get_by_alt_text("Live sampling preview").count() == 0
    use_vue(page, False)
