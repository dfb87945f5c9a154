"""What the browser tests do with ComfyUI's page."""

import re

from playwright.sync_api import Page

from mace.concepts.text import TextError
from tests import graphs

# What the pages that are watched said is wrong with the pack, since it was last taken.
_errors: list[str] = []


def watch(page: Page) -> Page:
    """The page, its errors recorded from now on where they name the pack or its files."""

    def note(text: str) -> None:
        # The page looks for a help page of its own language first, and then for the one there is.
        if "mace" in text.lower() and not re.search(r"404 .*/docs/\w+/\w+\.md", text):
            _errors.append(text)

    page.on("pageerror", lambda error: note(f"{error} {error.stack}"))
    page.on("console", lambda said: note(f"{said.text} {said.location}") if said.type == "error" else None)
    return page


def take_errors() -> list[str]:
    """The errors recorded since they were last taken."""
    taken = list(_errors)
    _errors.clear()
    return taken


def parsed_in_page(page, function: str, field: str, texts: list[str]) -> dict[str, dict | None]:
    """By text: the field of what a parser of the page reads, by its keys, None where it refuses. function: in
    JavaScript."""
    found = page.evaluate(
        f"""async texts => {{ const parse = {function};
            return texts.map(parse).map(
                found => found && Object.fromEntries([...found].map(([key, entry]) => [key, entry.{field}]))); }}""",
        texts,
    )
    return dict(zip(texts, found, strict=True))


def or_refused(parse, text: str):
    """What a parser of the nodes reads, None where it refuses."""
    try:
        return parse(text)
    except TextError:
        return None


def wait_for_pictures(page, nodes: int = 2, each: int = graphs.FEW) -> None:
    """Until as many Preview Image nodes show as many pictures, drawn."""
    page.wait_for_function(
        """([nodes, each]) => window.app.graph.nodes.filter(n => n.type === 'PreviewImage' && n.imgs &&
            n.imgs.length === each && n.imgs.every(i => i.naturalWidth > 0)).length === nodes""",
        arg=[nodes, each],
        # On a busy machine the page is slow to fetch and draw them.
        timeout=180_000,
    )


def reports(page) -> dict[str, str]:
    """What the nodes report of the run, by the nodes' type."""
    return page.evaluate(
        """() => Object.fromEntries(window.app.graph.nodes.flatMap(n =>
            (n.widgets ?? []).filter(w => w.name === 'report').map(w => [n.type, w.element.value])))"""
    )


def use_vue(page, vue: bool) -> None:
    """Have the page draw nodes with Vue, or in its classic way."""
    page.evaluate("vue => window.app.extensionManager.setting.set('Comfy.VueNodes.Enabled', vue)", vue)
    page.wait_for_function("vue => Boolean(window.LiteGraph.vueNodesMode) === vue", arg=vue)


def saved(page) -> dict:
    """The workflow as the page would save it."""
    return page.evaluate("JSON.parse(JSON.stringify(window.app.graph.serialize()))")


def queued(page) -> dict:
    """The prompt that the page would queue."""
    return page.evaluate("window.app.graphToPrompt()")["output"]


def without_titles(prompt: dict) -> dict:
    """A prompt without what only the page needs."""
    return {key: {"class_type": node["class_type"], "inputs": node["inputs"]} for key, node in prompt.items()}
