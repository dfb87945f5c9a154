"""Screenshots of single nodes for the help pages, from the page of a running host.

    python dev.py run python -m devtools.node_pictures http://127.0.0.1:8188 [NODE ...]

Writes web/docs/pictures/<node id>.png for the nodes named, or for all that have a help page, and what each shows into
pictures/shown.json, by which a test knows an old picture; with Concepts also web/docs/concept_table.png, the table with
some concepts in it. Needs a Chromium (see dev.py).
"""

import io
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from .host import get_json
from .pages import open_page

DOCS = Path(__file__).resolve().parent.parent / "web/docs"
SHOWN = DOCS / "pictures/shown.json"
COLOURS = 64
LEFT, TOP, TITLE = 700, 200, 30
TABLE = "MACE_Concepts"
WRITTEN = "# animals\ndog | hound, puppy -> sky\n#cat -> forest\nhorse > field\n[style] Van Gogh"
PLACE = """async ([kind, id, left, top, written]) => {
    const app = window.app, node = window.LiteGraph.createNode(kind);
    app.graph.clear();
    // The page keeps values by the number of a node: each kind has its own.
    node.id = id;
    app.graph.add(node);
    node.pos = [0, 0];
    if (written) node.widgets.find(widget => widget.name === 'concepts').value = written;
    await new Promise(done => setTimeout(done, 200));
    const [width, height] = node.computeSize();
    node.setSize([Math.max(360, Math.min(width, 460)), height]);
    app.canvas.ds.scale = 1;
    app.canvas.ds.offset = [left, top];
    app.canvas.setDirty(true, true);
    await new Promise(done => setTimeout(done, 600));
    const canvas = document.querySelector('#graph-canvas').getBoundingClientRect();
    return [canvas.left, canvas.top, ...node.size];
}"""


def shown_of(entry: dict) -> dict:
    """What the picture of a node shows of its schema: title, inputs with their defaults or placeholders, outputs.

    entry: the node's of the host's /object_info.
    """
    inputs = {
        options.get("display_name", name): options["default"]
        if options.get("default", "") != ""
        else options.get("placeholder")
        for group in ("required", "optional")
        for name, (_, options) in entry["input"].get(group, {}).items()
    }
    return {"title": entry["display_name"], "inputs": inputs, "outputs": entry["output_name"]}


def picture(page: Page, kind: str, number: int, written: str = "") -> Image.Image:
    """A node as the page draws it, with its defaults. number: of the node, another for each kind.  written: of
    Concepts, what stands in it."""
    left, top, width, height = page.evaluate(PLACE, [kind, number, LEFT, TOP, written])
    return taken(page, (left + LEFT - 14, top + TOP - TITLE - 8, width + 28, height + TITLE + 18))


def taken(page: Page, area: Sequence[float], colours: int = COLOURS) -> Image.Image:
    """A part of the page, in so many colours. area: x, y, width, height in pixels."""
    clip = dict(zip(("x", "y", "width", "height"), area, strict=True))
    return Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("RGB").quantize(colours)


def main() -> None:
    """Take the pictures that the command line asks for."""
    url, *named = sys.argv[1:]
    kinds = named or sorted(path.stem for path in DOCS.glob("MACE_*.md"))
    (DOCS / "pictures").mkdir(exist_ok=True)
    info = get_json(url + "/object_info")
    shown = json.loads(SHOWN.read_text(encoding="utf-8")) if SHOWN.exists() else {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=os.environ.get("MACE_BROWSER"), args=["--no-sandbox"])
        page = open_page(browser, url, height=1400)
        for number, kind in enumerate(kinds, start=50):
            picture(page, kind, number).save(DOCS / f"pictures/{kind}.png", optimize=True)
            shown[kind] = shown_of(info[kind])
        if TABLE in kinds:
            picture(page, TABLE, len(kinds) + 50, WRITTEN).save(DOCS / "concept_table.png", optimize=True)
        browser.close()
    SHOWN.write_text(json.dumps(shown, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
