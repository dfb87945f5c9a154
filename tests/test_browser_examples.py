"""Every example of the demo model in ComfyUI's real page, queued to its end, in both renderers.

The two templates for any checkpoint are those of test_first_click.py.
"""

import pytest

from devtools.pages import load, press_queue
from tests import graphs
from tests.pages import reports, use_vue
from tests.test_server_masks import folders  # noqa: F401

pytestmark = [pytest.mark.browser, pytest.mark.long]

# What makes them quick, by the nodes' types: that they run is looked at, not what they draw.
QUICK = {
    "MACE_ConceptImages": {"count": 2},
    "MACE_FindAliases": {"nearest": 40, "thumbnails": 2},
    "MACE_TrainErasureLora": {"steps": "2"},
    "MACE_EvaluateErasure": {"seeds": 1, "steps": 2},
    "KSampler": {"steps": 2},
    "EmptyLatentImage": {"batch_size": graphs.FEW},
}
# Those whose files the tests do not have end with a sentence that names one.
LACKING = {"masks_grounding_dino": "put groundingdino_swint_ogc.pth", "masks_sam3": "sam3.safetensors"}
# Seconds for one run, also on a busy machine.
PATIENCE = 1800


def names():
    return sorted(path.stem for path in graphs.DEMO_TEMPLATES.glob("*.json"))


@pytest.fixture
def page(kept_page):
    """One page for all: every test opens a workflow of its own."""
    yield kept_page
    use_vue(kept_page, False)


@pytest.mark.parametrize("vue", [False, True], ids=["classic", "Vue"])
@pytest.mark.parametrize("name", names())
def test_an_example_runs_to_its_end(page, request, name, vue):
    if name == "masks_transformers":
        request.getfixturevalue("folders")
    use_vue(page, vue)
    workflow = graphs.workflow(name)
    load(page, workflow)
    page.evaluate(
        """quick => { for (const node of window.app.graph.nodes)
            for (const [name, value] of Object.entries(quick[node.type] ?? {}))
                node.widgets.find(widget => widget.name === name).value = value; }""",
        QUICK,
    )
    if name in LACKING:
        with pytest.raises(AssertionError, match=LACKING[name]):
            press_queue(page, PATIENCE)
        return
    entry = press_queue(page, PATIENCE)
    shown = {key for key, output in entry["outputs"].items() if output.get("images")}
    assert {str(node["id"]) for node in workflow["nodes"] if node["type"] == "PreviewImage"} <= shown
    said = reports(page)
    last = {"MACE_SaveErasedModel", "MACE_FuseLoras", "MACE_EvaluateErasure", "MACE_MaskConcept"}
    ends = last & {node["type"] for node in workflow["nodes"]}
    assert ends and ends <= set(said) and all(said.values())
