"""Turn a saved workflow into the prompt the host's API takes, as ComfyUI's page does. Standard library only."""

import re

NEVER, BYPASS = 2, 4
NOTES = ("Note", "MarkdownNote")
VIRTUAL = ("Reroute", "PrimitiveNode", *NOTES)
DYNAMIC_COMBO = "COMFY_DYNAMICCOMBO_V3"
WIDGET_TYPES = {
    "INT",
    "FLOAT",
    "STRING",
    "BOOLEAN",
    "COMBO",
    "MARKDOWN",
    "COLOR",
    "BOUNDING_BOX",
    "CHART",
    "GALLERIA",
    "PAINTER",
    "TEXTAREA",
    "CURVE",
    "RANGE",
    "BOUNDING_BOXES",
    "COLORS",
    DYNAMIC_COMBO,
}
CONTROLS = ("fixed", "increment", "decrement", "randomize", "increment-wrap")
UPLOADS = ("image_upload", "animated_image_upload", "video_upload")
# A widget that shows pictures: it has no place among the saved values, yet goes into the prompt.
VALUES_NOT_SAVED = {"IMAGECOMPARE": {"__value__": ["", ""]}}


class GraphError(ValueError):
    """A workflow that cannot be turned into a prompt; the message names the node."""


def to_prompt(workflow: dict, object_info: dict) -> dict:
    """Convert `workflow` (as the page saves it) to the API's form, given the host's GET /object_info.

    Muted nodes are left out, bypassed ones passed through, Reroutes followed and notes dropped. A
    random choice in a prompt, {a|b}, always takes its first. Raises GraphError for a node type the host does
    not know, for a subgraph, and for links in a circle."""
    graph = _Graph(workflow)
    active = [
        node
        for node in graph.nodes.values()
        if node["type"] not in VIRTUAL and node.get("mode", 0) not in (NEVER, BYPASS)
    ]
    subgraphs = {entry.get("id") for entry in (workflow.get("definitions") or {}).get("subgraphs") or []}
    for node in active:
        if node["type"] in subgraphs:
            raise GraphError(f"{_name(node)} is a subgraph; unpack it before converting the workflow.")
    unknown = sorted({node["type"] for node in active if node["type"] not in object_info})
    if unknown:
        raise GraphError(
            f"The host knows no node of type {', '.join(unknown)}. Is the pack that brings it "
            "installed, and did it load without an error?"
        )
    prompt = {}
    for node in active:
        info = object_info[node["type"]]
        inputs = _widget_values(node, info)
        for index, entry in enumerate(node.get("inputs") or []):
            primitive = graph.primitive_value(entry)
            if primitive is not None:
                inputs[entry["name"]] = primitive[0]
                continue
            origin = graph.resolve_input(node, index)
            if origin is not None:
                inputs[entry["name"]] = [str(origin[0]), origin[1]]
        title = node.get("title") or info.get("display_name") or node["type"]
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs, "_meta": {"title": title}}
    return prompt


def _name(node: dict) -> str:
    title = node.get("title")
    return f"Node {node['id']} ({title or node['type']})"


class _Graph:
    def __init__(self, workflow: dict):
        self.nodes = {node["id"]: node for node in workflow["nodes"]}
        self.links = {}
        for link in workflow.get("links") or []:
            if isinstance(link, dict):
                self.links[link["id"]] = (link["origin_id"], link["origin_slot"], link["type"])
            else:
                self.links[link[0]] = (link[1], link[2], link[5])

    def primitive_value(self, entry: dict) -> tuple | None:
        """(value,) when a PrimitiveNode, perhaps behind Reroutes, feeds the input `entry`, else None."""
        link, seen = entry.get("link"), set()
        while link in self.links and link not in seen:
            seen.add(link)
            origin = self.nodes.get(self.links[link][0])
            if origin is None or origin.get("mode", 0) in (NEVER, BYPASS):
                return None
            if origin["type"] == "PrimitiveNode":
                values = origin.get("widgets_values")
                return (values[0],) if values else None
            if origin["type"] != "Reroute":
                return None
            link = (origin.get("inputs") or [{}])[0].get("link")
        return None

    def resolve_input(self, node: dict, index: int, kind: str | None = None, seen: frozenset = frozenset()):
        """(node id, slot) of the node that really feeds an input, or None."""
        key = (node["id"], index)
        if key in seen:
            raise GraphError(f"{_name(node)} is linked in a circle.")
        inputs = node.get("inputs") or []
        if index >= len(inputs) or inputs[index].get("link") not in self.links:
            return None
        origin_id, slot, _ = self.links[inputs[index]["link"]]
        origin = self.nodes.get(origin_id)
        if origin is None:
            raise GraphError(
                f"{_name(node)}: its input {inputs[index]['name']} is linked to node {origin_id}, "
                "which is not in the workflow."
            )
        kind = kind or inputs[index].get("type", "*")
        seen = seen | {key}
        mode = origin.get("mode", 0)
        if mode == NEVER:
            return None
        if mode == BYPASS:
            passed = _bypass_slot(origin, slot, kind)
            return None if passed is None else self.resolve_input(origin, passed, None, seen)
        if origin["type"] == "Reroute":
            return self.resolve_input(origin, 0, kind, seen)
        if origin["type"] in VIRTUAL:
            return None
        return origin_id, slot


def _fits(left, right) -> bool:
    if left in ("*", "", 0) or right in ("*", "", 0):
        return True
    return bool(set(str(left).upper().split(",")) & set(str(right).upper().split(",")))


def _bypass_slot(node: dict, slot: int, kind) -> int | None:
    """Which input of a bypassed node stands in for its output `slot`."""
    inputs = node.get("inputs") or []
    outputs = node.get("outputs") or []
    out = outputs[slot]["type"] if slot < len(outputs) else kind
    if kind in ("*", ""):
        return slot if slot < len(inputs) else 0
    if slot < len(inputs) and _fits(inputs[slot]["type"], out) and _fits(inputs[slot]["type"], kind):
        return slot
    for index, entry in enumerate(inputs):
        if entry["type"] == kind:
            return index
    return next(
        (index for index, entry in enumerate(inputs) if _fits(entry["type"], out) and _fits(entry["type"], kind)), None
    )


def _split(spec) -> tuple[str, dict]:
    """(type, options) of one entry of object_info; a bare list of choices is a COMBO."""
    kind, options = spec[0], dict(spec[1]) if len(spec) > 1 and isinstance(spec[1], dict) else {}
    if isinstance(kind, (list, tuple)):
        return "COMBO", {**options, "options": list(kind)}
    return options.get("widgetType") or kind, options


def _widget_values(node: dict, info: dict) -> dict:
    saved = node.get("widgets_values")
    reader = _ByName(saved) if isinstance(saved, dict) else _InOrder(list(saved or []))
    values: dict = {}
    for group in ("required", "optional"):
        specs = info.get("input", {}).get(group) or {}
        order = (info.get("input_order") or {}).get(group) or list(specs)
        _take(values, reader, {name: specs[name] for name in order if name in specs})
        if group == "required" and any(_split(spec)[1].get(flag) for spec in specs.values() for flag in UPLOADS):
            reader.skip_upload()
    return values


def _take(values: dict, reader, specs: dict, prefix: str = "") -> None:
    for name, spec in specs.items():
        kind, options = _split(spec)
        name = prefix + name
        if options.get("forceInput"):
            continue
        if kind in VALUES_NOT_SAVED:
            values[name] = VALUES_NOT_SAVED[kind]
            continue
        if kind not in WIDGET_TYPES:
            continue
        value = reader.next(name, _default(kind, options))
        if kind == DYNAMIC_COMBO:
            values[name] = value
            chosen = next((choice for choice in options.get("options", []) if choice["key"] == value), None)
            for group in ("required", "optional"):
                _take(values, reader, ((chosen or {}).get("inputs") or {}).get(group) or {}, name + ".")
            continue
        if kind == "STRING" and options.get("dynamicPrompts") and isinstance(value, str):
            value = _plain_prompt(value)
        # A bare list would be taken for a link.
        values[name] = {"__value__": value} if isinstance(value, list) else value
        by_name = kind == "INT" and name in ("seed", "noise_seed")
        if options.get("control_after_generate", by_name):
            reader.skip_control(kind)


def _default(kind: str, options: dict):
    if "default" in options:
        return options["default"]
    if kind in ("COMBO", DYNAMIC_COMBO):
        choices = options.get("options") or [None]
        return choices[0]["key"] if kind == DYNAMIC_COMBO else choices[0]
    return {"INT": 0, "FLOAT": 0, "STRING": "", "BOOLEAN": False}.get(kind)


class _InOrder:
    """Saved values as a list: one for each widget, in the node's order."""

    def __init__(self, values: list):
        self.values, self.at = values, 0

    def next(self, name: str, default):
        if self.at >= len(self.values):
            return default
        self.at += 1
        return self.values[self.at - 1]

    def _peek(self):
        return self.values[self.at] if self.at < len(self.values) else None

    def skip_control(self, kind: str) -> None:
        if self._peek() in CONTROLS:
            self.at += 1
            # A combo's control comes with a field to filter its choices.
            if kind == "COMBO" and isinstance(self._peek(), str):
                self.at += 1

    def skip_upload(self) -> None:
        if self._peek() in ("image", "video", "audio", None):
            self.at += 1


class _ByName:
    """Saved values as a dict."""

    def __init__(self, values: dict):
        self.values = values

    def next(self, name: str, default):
        return self.values.get(name, default)

    def skip_control(self, kind: str) -> None:
        pass

    def skip_upload(self) -> None:
        pass


def _plain_prompt(text: str) -> str:
    """What the page sends for a prompt: comments gone, {a|b} decided (here for a), escapes resolved."""
    text = re.sub(r"/\*[\s\S]*?\*/|//.*", "", text)
    choice = re.compile(r"(?<!\\)\{((?:\\.|[^{}\\])*)(?<!\\)\}")
    while choice.search(text):
        text = choice.sub(lambda found: re.split(r"(?<!\\)\|", found[1])[0], text)
    return re.sub(r"\\([{}|])", r"\1", text)
