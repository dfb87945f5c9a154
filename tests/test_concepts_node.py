"""What nodes say of lists before anything runs, and what Concepts says of lines that it passed over."""

import re

import pytest

from tests.stages import report

pytestmark = pytest.mark.host


def run(comfy_host, text, type="object"):
    return comfy_host.run("MACE_Concepts", concepts=text, type=type, preset="none", prompt_file="none")


def test_what_may_be_a_phrase_and_was_taken_for_a_comment_is_told(comfy_host):
    assert report(run(comfy_host, "dog  # a comment")) == ""
    assert report(run(comfy_host, "#metoo\ndog")).startswith("line 1: '#metoo': what follows # is a comment")
    with pytest.raises(ValueError, match="list of concepts is empty: write one .*; line 1: '#metoo': .*in quotes"):
        run(comfy_host, "#metoo")
    assert [c.target for c in run(comfy_host, '"#metoo"', "style")[0]] == ["#metoo"]


def test_what_a_comma_in_a_target_does_is_told(comfy_host):
    ran = run(comfy_host, 'dog, hot cat | pup, kitty -> sky, grass\n"Paris, Texas"\nship,')
    assert [c.target for c in ran[0]] == ["dog, hot cat", "Paris, Texas", "ship"]
    assert report(ran) == (
        "line 1: 'dog, hot cat' is read as one concept with a comma in its name; if several are meant, write each in "
        "its own line: dog, then hot cat; if it is one, put it in double quotes"
    )


def test_a_prompt_file_names_itself_and_the_line(comfy_host):
    (comfy_host.base / "input/mine.txt").write_text("a {} in fog\n\na dog", encoding="utf-8")
    with pytest.raises(ValueError, match="^mine.txt: line 3: 'a dog' needs {} where the phrase goes"):
        comfy_host.run("MACE_Concepts", concepts="dog", type="object", preset="none", prompt_file="mine.txt")


@pytest.mark.parametrize(
    "node, given, message",
    [
        ("MACE_Concepts", dict(concepts="dog\ncat > mouse"), "concepts: line 2: .*write: cat -> mouse"),
        ("MACE_Concepts", dict(concepts='["dog", "cat"]'), "another program's list"),
        ("MACE_Concepts", dict(concepts="dog\nd\ud83dog"), r"concepts: line 2: .*U\+D83D"),
        ("MACE_Prior", dict(preserve="dog\n\ue000"), r"preserve: line 2: .*U\+E000"),
        ("MACE_BaselineUCE", dict(preserve="dog -> cat"), "preserve: line 1: .*no mapping"),
        ("MACE_FuseLoras", dict(strengths="dog: 0,5"), "strengths: line 1: .*as in: dog = 0.5"),
        ("MACE_FindAliases", dict(words="dog", keep="cat\nd\udc00g"), r"keep: line 2: .*U\+DC00"),
        ("MACE_EvaluateErasure", dict(synonyms="dog -> cat"), "synonyms: line 1"),
        ("MACE_EvaluateErasure", dict(keep="dog; cat"), "keep: line 1: .*dog, then cat"),
        ("MACE_EvaluateErasure", dict(prompts="a {}\na dog"), "prompts: line 2: 'a dog' needs {}"),
        ("MACE_ConceptImages", dict(prompt="a {} and a { }"), "prompt: .*no other braces"),
        ("MACE_ResidualPrompt", dict(prompt="a caf\u00e9\ue000", phrase="caf\u00e9"), r"prompt: line 1: .*U\+E000"),
    ],
)
def test_errors_name_field_and_line_before_anything_runs(comfy_host, node, given, message):
    said = comfy_host.validate(node, **given)
    assert isinstance(said, str) and re.search(message, said), said


def test_a_phrase_is_found_however_its_letters_are_typed(comfy_host):
    as_template = comfy_host.module("nodes.measure.residual").as_template
    assert as_template("a Cafe\u0301 at\xa0night, the cafe\u0301", "caf\u00e9") == "a {} at night, the {}"
    assert as_template("a hot\u3000dog", "Hot\u200b dog") == "a {}"


def test_a_line_has_a_type_of_its_own(comfy_host):
    """The prompts of a file are for lines of the node's type alone."""
    (comfy_host.base / "input/own.txt").write_text("a {} in fog", encoding="utf-8")
    lines = "dog\n[style] Van Gogh\n[celebrity] Ann | Annie -> a woman"
    found = comfy_host.run("MACE_Concepts", concepts=lines, type="object", preset="none", prompt_file="own.txt")[0]
    assert [(c.target, c.mapping, c.type, c.templates) for c in found] == [
        ("dog", "sky", "object", ("a {} in fog",)),
        ("Van Gogh", "art", "style", ()),
        ("Ann", "a woman", "celebrity", ()),
    ]
    assert "[stile] is no type" in comfy_host.validate("MACE_Concepts", concepts="[stile] Van Gogh")
