"""What the browser tests do with ComfyUI's page."""

from tests import graphs


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


def saved(page) -> dict:
    """The workflow as the page would save it."""
    return page.evaluate("JSON.parse(JSON.stringify(window.app.graph.serialize()))")


def queued(page) -> dict:
    """The prompt that the page would queue."""
    return page.evaluate("window.app.graphToPrompt()")["output"]


def without_titles(prompt: dict) -> dict:
    """A prompt without what only the page needs."""
    return {key: {"class_type": node["class_type"], "inputs": node["inputs"]} for key, node in prompt.items()}
