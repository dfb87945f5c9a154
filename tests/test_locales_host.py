"""The languages in the real host: what they are translated from, and what the page is given of them."""

import json
import os
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent
ENGLISH = REPO / "locales/en/nodeDefs.json"
# The nodes that an artist meets first.
TRANSLATED = (
    "MACE_Concepts",
    "MACE_EraseConcepts",
    "MACE_FindAliases",
    "MACE_FuseLoras",
    "MACE_Prior",
    "MACE_SaveErasedModel",
)

pytestmark = pytest.mark.host


def texts(schema) -> dict:
    """What a node says in English, in the form of nodeDefs.json."""
    inputs, outputs = (
        {key: {"name": slot.display_name or slot.id, "tooltip": slot.tooltip} for key, slot in slots}
        for slots in (((slot.id, slot) for slot in schema.inputs), enumerate(schema.outputs))
    )
    return {
        "display_name": schema.display_name,
        "description": schema.description,
        "inputs": inputs,
        "outputs": {str(index): slot for index, slot in outputs.items()},
    }


def test_the_english_that_was_translated_is_what_the_nodes_say(comfy_host):
    """A changed text is changed in every language first; then the English file is written anew: delete it and run this
    test once."""
    seen = {name: texts(comfy_host.node_classes[name].GET_SCHEMA()) for name in TRANSLATED}
    if not ENGLISH.exists():
        ENGLISH.write_text(json.dumps(seen, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        pytest.fail("there was no file; it is written now: look it over, commit it and run again")
    assert seen == json.loads(ENGLISH.read_text(encoding="utf-8"))


def test_the_host_reads_every_language(comfy_host):
    """From the folder where the pack is installed."""
    from app.custom_node_manager import CustomNodeManager

    (folder, *_) = comfy_host.folder_paths.get_folder_paths("custom_nodes")
    installed = Path(folder) / "mace-comfyui"
    os.symlink(REPO, installed)
    try:
        read = CustomNodeManager().build_translations()
    finally:
        installed.unlink()
    files = {path.parent.name: path for path in (REPO / "locales").glob("*/nodeDefs.json")}
    assert files and set(read) == set(files)
    for language, path in files.items():
        assert read[language] == {"nodeDefs": json.loads(path.read_text(encoding="utf-8"))}
