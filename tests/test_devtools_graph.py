"""Saved workflows turned into prompts, case by case. The browser test compares with the page itself."""

import pytest

from devtools.graph import GraphError, to_prompt

INFO = {
    "Load": {"input": {"required": {"name": [["a", "b"]]}}, "display_name": "Load Model"},
    "Patch": {"input": {"required": {"model": ["MODEL"], "text": ["STRING", {"dynamicPrompts": True}]}}},
    "Sample": {
        "input": {
            "required": {
                "model": ["MODEL"],
                "seed": ["INT", {"control_after_generate": True}],
                "steps": ["INT", {"default": 20}],
                "kind": ["COMBO", {"options": ["x", "y"]}],
            },
            "optional": {
                "mask": ["MASK"],
                "scale": ["FLOAT", {"default": 1.5}],
                "forced": ["INT", {"forceInput": True}],
            },
        },
    },
    "Image": {"input": {"required": {"image": [["p.png"], {"image_upload": True}]}, "optional": {"red": ["BOOLEAN"]}}},
    "Noise": {"input": {"required": {"noise_seed": ["INT", {}], "after": ["INT", {}]}}},
    "Choice": {
        "input": {
            "required": {
                "backend": [
                    "COMFY_DYNAMICCOMBO_V3",
                    {
                        "options": [
                            {"key": "none", "inputs": {}},
                            {"key": "cut", "inputs": {"required": {"threshold": ["FLOAT", {"default": 0.5}]}}},
                        ]
                    },
                ],
                "end": ["INT", {}],
            }
        }
    },
    "Number": {"input": {"required": {"value": ["INT", {}]}}},
    "Compare": {
        "input": {"required": {}, "optional": {"a": ["IMAGE"], "view": ["IMAGECOMPARE", {}], "b": ["INT", {}]}}
    },
}


def graph(*nodes, links=()) -> dict:
    return {"nodes": list(nodes), "links": list(links), "version": 0.4}


def saved(number: int, kind: str, values=None, inputs=(), outputs=("MODEL",), mode: int = 0, **more) -> dict:
    """A node as the page saves it; inputs are (name, type, link)."""
    return {
        "id": number,
        "type": kind,
        "mode": mode,
        "widgets_values": values,
        "inputs": [{"name": name, "type": type_, "link": link} for name, type_, link in inputs],
        "outputs": [{"name": type_, "type": type_} for type_ in outputs],
        **more,
    }


def inputs_of(*nodes, links=(), of="2") -> dict:
    return to_prompt(graph(*nodes, links=links), INFO)[of]["inputs"]


def test_values_links_and_titles():
    prompt = to_prompt(
        graph(
            saved(1, "Load", ["b"]),
            saved(2, "Sample", [7, "randomize", 12, "y", 2.0], [("model", "MODEL", 5)], title="Draw"),
            links=[[5, 1, 0, 2, 0, "MODEL"]],
        ),
        INFO,
    )
    assert prompt == {
        "1": {"class_type": "Load", "inputs": {"name": "b"}, "_meta": {"title": "Load Model"}},
        "2": {
            "class_type": "Sample",
            "_meta": {"title": "Draw"},
            "inputs": {"model": ["1", 0], "seed": 7, "steps": 12, "kind": "y", "scale": 2.0},
        },
    }


def test_links_as_objects():
    link = {"id": 5, "origin_id": 1, "origin_slot": 0, "target_id": 2, "target_slot": 0, "type": "MODEL"}
    found = inputs_of(saved(1, "Load", ["a"]), saved(2, "Patch", ["t"], [("model", "MODEL", 5)]), links=[link])
    assert found == {"model": ["1", 0], "text": "t"}


def test_values_by_name_and_missing_ones():
    assert inputs_of(saved(2, "Sample", {"kind": "y", "seed": 3})) == {
        "seed": 3,
        "steps": 20,
        "kind": "y",
        "scale": 1.5,
    }
    assert inputs_of(saved(2, "Sample", [3])) == {"seed": 3, "steps": 20, "kind": "x", "scale": 1.5}


def test_a_widget_turned_into_an_input_keeps_its_place():
    found = inputs_of(
        saved(1, "Number", [9], outputs=("INT",)),
        saved(2, "Sample", [7, "fixed", 12, "y", 2.0], [("steps", "INT", 4)]),
        links=[[4, 1, 0, 2, 0, "INT"]],
    )
    assert found == {"seed": 7, "steps": ["1", 0], "kind": "y", "scale": 2.0}


def test_slots_that_are_not_inputs_are_skipped():
    assert inputs_of(saved(2, "Noise", [1, "increment", 5])) == {"noise_seed": 1, "after": 5}
    assert inputs_of(saved(2, "Noise", [1, 5])) == {"noise_seed": 1, "after": 5}
    assert inputs_of(saved(2, "Image", ["p.png", "image", True])) == {"image": "p.png", "red": True}
    assert inputs_of(saved(2, "Compare", [4])) == {"view": {"__value__": ["", ""]}, "b": 4}


def test_a_choice_with_settings_of_its_own():
    assert inputs_of(saved(2, "Choice", ["cut", 0.25, 3])) == {"backend": "cut", "backend.threshold": 0.25, "end": 3}
    assert inputs_of(saved(2, "Choice", ["none", 3])) == {"backend": "none", "end": 3}


def test_muted_nodes_are_left_out_with_their_links():
    prompt = to_prompt(
        graph(
            saved(1, "Load", ["a"], mode=2),
            saved(2, "Patch", ["t"], [("model", "MODEL", 5)]),
            links=[[5, 1, 0, 2, 0, "MODEL"]],
        ),
        INFO,
    )
    assert list(prompt) == ["2"] and prompt["2"]["inputs"] == {"text": "t"}


def test_bypassed_nodes_and_reroutes_are_passed_through():
    nodes = [
        saved(1, "Load", ["a"]),
        saved(3, "Patch", ["t"], [("model", "MODEL", 5)], mode=4),
        saved(4, "Reroute", None, [("", "*", 6)], outputs=("*",)),
        saved(2, "Sample", [1, "fixed", 1, "x", 1.0], [("model", "MODEL", 7)]),
    ]
    links = [[5, 1, 0, 3, 0, "MODEL"], [6, 3, 0, 4, 0, "*"], [7, 4, 0, 2, 0, "MODEL"]]
    prompt = to_prompt(graph(*nodes, links=links), INFO)
    assert set(prompt) == {"1", "2"} and prompt["2"]["inputs"]["model"] == ["1", 0]


def test_a_primitive_gives_its_value_and_notes_vanish():
    nodes = [
        saved(1, "PrimitiveNode", [33, "fixed"], outputs=("INT",)),
        saved(5, "Note", ["hello"]),
        saved(2, "Sample", [7, "fixed", 12, "y", 2.0], [("steps", "INT", 4)]),
        saved(6, "MarkdownNote", ["*"]),
    ]
    prompt = to_prompt(graph(*nodes, links=[[4, 1, 0, 2, 0, "INT"]]), INFO)
    assert list(prompt) == ["2"] and prompt["2"]["inputs"]["steps"] == 33


@pytest.mark.parametrize(
    "text, sent",
    [
        ("a cat", "a cat"),
        ("a {red|blue} cat", "a red cat"),
        ("a {x {y|z}|w} b", "a x y b"),
        (r"a \{b\|c\}", "a {b|c}"),
        ("one // two", "one "),
        ("a /* b */ c", "a  c"),
        ("a (cat:1.2)", "a (cat:1.2)"),
    ],
)
def test_prompts_are_sent_as_the_page_sends_them(text, sent):
    assert inputs_of(saved(2, "Patch", [text]))["text"] == sent


def test_graph_errors_name_the_node():
    with pytest.raises(GraphError, match="no node of type Gone, Lost"):
        to_prompt(graph(saved(1, "Lost"), saved(2, "Gone")), INFO)
    assert to_prompt(graph(saved(1, "Lost", mode=4)), INFO) == {}
    with pytest.raises(GraphError, match=r"Node 2 \(Draw\): its input model is linked to node 9"):
        inputs_of(saved(2, "Sample", [], [("model", "MODEL", 5)], title="Draw"), links=[[5, 9, 0, 2, 0, "MODEL"]])
    with pytest.raises(GraphError, match="circle"):
        inputs_of(
            saved(1, "Reroute", None, [("", "*", 6)]),
            saved(3, "Reroute", None, [("", "*", 7)]),
            saved(2, "Sample", [], [("model", "MODEL", 5)]),
            links=[[5, 1, 0, 2, 0, "*"], [6, 3, 0, 1, 0, "*"], [7, 1, 0, 3, 0, "*"]],
        )
    inner = {"nodes": [saved(1, "uuid")], "links": [], "definitions": {"subgraphs": [{"id": "uuid"}]}}
    with pytest.raises(GraphError, match="subgraph"):
        to_prompt(inner, INFO)
