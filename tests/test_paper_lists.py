"""What the page knows of the paper's lists is what the nodes know."""

import json
from pathlib import Path

import pytest

from mace.concepts.concept import TYPES
from mace.concepts.lists import DEFAULT_MAPPING, PAPER_LISTS, mapping_for
from mace.concepts.text import normalised

MODULE = Path(__file__).resolve().parent.parent / "web/paper_lists.js"


def expected() -> str:
    """The module as it is to be, one entry a line."""
    classes = {target: mapping for target, mapping, _ in PAPER_LISTS["10 CIFAR-10 classes"]}
    assert all(normalised(name) == name and mapping_for(name, "object") == classes[name] for name in classes)

    def entries(rows):
        return "".join(f"    {json.dumps(row)},\n" for row in rows)

    def one_a_line(rows):
        return "".join(f"  {json.dumps(row)},\n" for row in rows)

    lists = "".join(
        f"  {json.dumps(name)}: [\n{entries([list(own) for own in preset])}  ],\n"
        for name, preset in PAPER_LISTS.items()
    )
    return (
        "// The paper's lists and the usual mappings, of mace/concepts/lists.py; test_paper_lists.py writes it.\n\n"
        "// By type, in the order of the nodes' choice.\n"
        f"export const MAPPINGS = {json.dumps({kind: DEFAULT_MAPPING[kind] for kind in TYPES}, indent=2)};\n\n"
        "// Of the classes of Table 6.\n"
        f"export const CLASSES = new Map([\n{one_a_line([list(own) for own in classes.items()])}]);\n\n"
        "// [target, mapping, type] of each.\n"
        f"export const LISTS = {{\n{lists}}};\n"
    )


def test_the_pages_lists_are_the_nodes():
    """A wanted change is recorded by writing the module anew: delete the file and run this test once."""
    if not MODULE.exists():
        MODULE.write_text(expected(), encoding="utf-8")
        pytest.fail("there was no module; it is written now: look it over, commit it and run again")
    assert MODULE.read_text(encoding="utf-8") == expected()
