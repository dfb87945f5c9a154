"""Messages quote what they are about, and stay readable."""

import json

import pytest

from mace.concepts.captions import CaptionError, read_captions
from mace.concepts.concept import ConceptError, parse_concepts
from mace.concepts.templates import TemplateError, read_templates
from mace.messages import LONGEST, shortened

WORD = "a" * 60_000


def test_long_quotes_are_cut_and_others_stay():
    message = shortened(f"line 3: '{WORD}' already stands in line 2; remove one of them")
    assert message.startswith("line 3: 'aaa") and message.endswith("aaa' already stands in line 2; remove one of them")
    assert len(message) < 200
    assert len(shortened(f"{'it' + chr(39) + 's ' + WORD!r} and more")) < 200
    for kept in (f"'{'b' * (LONGEST - 1)}' is short", f"ComfyUI's {'c ' * 100} model's", "", "'"):
        assert shortened(kept) == kept


@pytest.mark.parametrize("lines", [f"{WORD}\n{WORD}", f"{WORD} -> {WORD}", f"{WORD} -> ", f"{WORD} | {WORD} -> sky"])
def test_concepts(lines):
    with pytest.raises(ConceptError) as raised:
        parse_concepts(lines, "object")
    assert len(str(raised.value)) < 500


def test_templates():
    with pytest.raises(TemplateError) as raised:
        read_templates(WORD, "prompt")
    assert len(str(raised.value)) < 300


def test_annotations_alone_are_captions(tmp_path):
    """As some programs write COCO's out: the list under "annotations" by itself."""
    path = tmp_path / "captions.json"
    path.write_text(json.dumps([{"id": 1, "caption": " A dog  on grass. "}, "A cat.", {"caption": "A cat."}]))
    assert read_captions(path) == ["A dog on grass.", "A cat."]
    for odd in ([{"id": 1}], [{"caption": None}], [["A dog."]], [3]):
        path.write_text(json.dumps(odd))
        with pytest.raises(CaptionError, match=r"entry\[0\]: the caption is not a text"):
            read_captions(path)


@pytest.mark.host
def test_a_prompt_that_is_too_long(comfy_host, demo):
    encoder = comfy_host.module("nodes.host.text").TextEncoder(demo[1])
    with pytest.raises(ValueError, match="tokens, the text encoder takes 75") as raised:
        encoder.check_length("dog " * 5000)
    assert len(str(raised.value)) < 300


@pytest.mark.host
def test_why_no_caption_is_left(comfy_host, demo):
    folder = comfy_host.base / "input"
    (folder / "long.txt").write_text("\n".join(f"{n} " + "dog cat " * 50 for n in range(20)))
    (folder / "named.txt").write_text("A dog.\nTwo dogs.\n")
    (folder / "both.txt").write_text("A dog.\n" + "cat " * 100)
    given = {"clip": demo[1], "seed": 0, "preserve": "", "preserve_type": "object", "retention": "none"}
    erased = comfy_host.run("MACE_Concepts", concepts="dog", type="object", preset="none", prompt_file="none")[0]

    def said(captions, count=100, concepts=()):
        with pytest.raises(ValueError, match="there is nothing to keep") as raised:
            comfy_host.run("MACE_Prior", captions=captions, count=count, concepts=concepts, **given)
        return str(raised.value)

    assert "all 20 captions are longer than the text encoder takes" in said("long.txt")
    assert "all 2 captions name what is to be erased: give others" in said("named.txt", concepts=erased)
    assert "all 1 captions name what is to be erased (1 others are too long" in said("both.txt", concepts=erased)
    assert "count is 0" in said("long.txt", count=0)
