"""Screenshots of the two first templates after a run on the demo model, for the README.

    python dev.py run python -m devtools.template_pictures http://127.0.0.1:8188

Takes the page of a running host that has the demo model (`python dev.py host`), and writes docs/erase_one_object.png,
with the classic nodes, and docs/erase_several_things.png, with Vue's. Minutes on two cores. Needs a Chromium (see
dev.py).
"""

import json
import os
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

from .node_pictures import taken
from .pages import load, open_page, press_queue

REPO = Path(__file__).resolve().parent.parent
CHECKPOINT = "mace_demo.safetensors"
# The demo model's own size, and the steps and guidance it draws well with.
SIDE, STEPS, CFG = 64, 12, 4.0
# Seconds for a run, also on a busy machine.
RUN = 1800
# Where the graph is put in the page: right of and below what the page lays over it.
LEFT, TOP, MARGIN, WIDE = 70, 110, 20, 430
COMMON = {"ckpt_name": CHECKPOINT, "width": SIDE, "height": SIDE, "steps": STEPS, "cfg": CFG}
# By the picture: the template, whether Vue draws the nodes, values of Erase Concepts.
PICTURES = {
    "erase_one_object": ("Erase one object", False, {"words": "dog | canine"}),
    "erase_several_things": (
        "Erase several things",
        True,
        {"words": "dog -> cat\nairplane -> sky\nship | boat, vessel -> ground"},
    ),
}
SET = """values => {
    for (const node of window.app.graph.nodes) {
        const given = {
            MACE_EraseConcepts: values, CheckpointLoaderSimple: values, KSampler: values,
        }[node.type] ?? {};
        for (const widget of node.widgets ?? []) {
            if (widget.name in given) {
                widget.value = given[widget.name];
                widget.callback?.(widget.value);
            }
        }
    }
}"""
# Erase Concepts wider, what is right of it further right, and all of it in the page. The area that it takes there.
SHOW = """([left, top, margin, wide]) => {
    const app = window.app, nodes = app.graph.nodes;
    const erase = nodes.find(node => node.type === 'MACE_EraseConcepts');
    const more = wide - erase.size[0];
    erase.setSize([wide, window.LiteGraph.vueNodesMode ? erase.size[1] : erase.computeSize()[1]]);
    for (const node of nodes) {
        if (node.pos[0] > erase.pos[0]) node.pos = [node.pos[0] + more, node.pos[1]];
    }
    const ends = place => [
        Math.min(...nodes.map(node => node.pos[place] - (place ? 30 : 0))),
        Math.max(...nodes.map(node => node.pos[place] + node.size[place])),
    ];
    const [x, y] = [ends(0), ends(1)];
    const canvas = document.querySelector('#graph-canvas').getBoundingClientRect();
    const scale = Math.min(1, (canvas.width - left - 2 * margin) / (x[1] - x[0]),
        (canvas.height - top - 2 * margin) / (y[1] - y[0]));
    app.canvas.ds.scale = scale;
    app.canvas.ds.offset = [(left + margin) / scale - x[0], (top + margin) / scale - y[0]];
    app.canvas.setDirty(true, true);
    const size = ([from, to]) => (to - from) * scale + 2 * margin;
    return [canvas.left + left, canvas.top + top, size(x), size(y)];
}"""


def main() -> None:
    """Queue both templates and take their pictures."""
    (url,) = sys.argv[1:]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=os.environ.get("MACE_BROWSER"), args=["--no-sandbox"])
        for name, (template, vue, values) in PICTURES.items():
            page = open_page(browser, url, 1900, 1500)
            for setting, value in (("Comfy.VueNodes.Enabled", vue), ("Comfy.Minimap.Visible", False)):
                page.evaluate("given => window.app.extensionManager.setting.set(...given)", [setting, value])
            workflow = json.loads((REPO / f"example_workflows/{template}.json").read_text(encoding="utf-8"))
            load(page, workflow)
            page.evaluate(SET, {**COMMON, **values})
            press_queue(page, RUN)
            # The nodes grow with the pictures that they fetch.
            page.wait_for_timeout(5000)
            for _ in range(2):
                area = page.evaluate(SHOW, [LEFT, TOP, MARGIN, WIDE])
                page.wait_for_timeout(2500)
            taken(page, area, 255).save(REPO / f"docs/{name}.png", optimize=True)
            page.evaluate("window.app.extensionManager.setting.set('Comfy.VueNodes.Enabled', false)")
            page.close()
        browser.close()


if __name__ == "__main__":
    main()
