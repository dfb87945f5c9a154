"""What the headless command refuses before ComfyUI is imported: with the line, the reason and exit code 2."""

import io
import json

import pytest

from mace.pipeline.fusion import TOWARDS
from mace.pipeline.written import AUTO
from tests.headless_runs import Headless


@pytest.fixture
def refused(tmp_path, capsys):
    """What is said of a list that an erasure is asked for with."""
    run = Headless(None, capsys)

    def refuse(text="dog", *more, command="erase"):
        (tmp_path / "list.txt").write_text(text, encoding="utf-8")
        report = run(
            command, "--model", "none.safetensors", "--concepts", tmp_path / "list.txt",
            "--out", tmp_path / "out.safetensors", *more,
        )  # fmt: skip
        assert (report["exit_code"], report["status"]) == (2, "bad input")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["list.txt"]
        return report["error"].replace(str(tmp_path), "TMP")

    return refuse


@pytest.mark.parametrize(
    "text, said",
    [
        ("dog\nship -> a -> b", "TMP/list.txt: concepts: line 2: more than one '->'"),
        ("# all\n\ncat | kitty | puss", "TMP/list.txt: concepts: line 3: more than one '|'"),
        ("dog\ncat\nDog", "TMP/list.txt: concepts: line 3: 'Dog' already stands in line 1"),
        ("# nothing\n", "there is nothing to erase: write one concept a line"),
        ("cat -> a dog\ndog", "'cat' is mapped to 'a dog', which names 'dog', itself to be erased"),
        ("\nsky", "TMP/list.txt: concepts: line 2: 'sky' would be mapped to itself"),
    ],
)
def test_lists_with_line_and_reason(refused, text, said):
    assert said in refused(text)


@pytest.mark.parametrize(
    "more, said",
    [
        (("--strengths", "dog = 2"), "strengths: line 1: 'dog = 2' is not a concept and a strength from 0 to 1"),
        (("--strengths", "dog = 1", "cat = 1"), "strengths: there is no concept 'cat'"),
        (("--type", "animal"), "--type: 'animal' is none of: object, celebrity, style, explicit"),
        (("--type", "object", "--type", "style"), "--type is given 2 times and --concepts 1 times"),
        (("--paper-list", "10"), "--paper-list: '10' is several of: 10 CIFAR-10 classes"),
        (("--seed", "x"), "argument --seed: invalid int value: 'x' (see python -m headless erase --help)"),
        (("--nothing",), "unrecognized arguments: --nothing"),
        (("--loras", "/nowhere/set.safetensors"), "--loras: there is no folder /nowhere"),
        (("--concepts", "/nowhere/more.txt"), "--concepts /nowhere/more.txt: No such file or directory"),
        (("--paper-list", "1 celebrity", "--concepts", "/dev/null", "--strengths", "cat = 1"), "no concept 'cat'"),
    ],
)
def test_options_that_cannot_be(refused, more, said):
    assert said in refused("dog", *more)


def test_one_word_names_where_the_fusion_pulls():
    """As options are shortened everywhere: what a new choice is called must not stand in the way of an older one."""
    from headless.errors import meant

    pulls = [*TOWARDS, AUTO]
    assert [meant(word, pulls, "--pull") for word in ("refined", "original", "prior", "auto")] == pulls


def test_names_to_keep_that_are_erased(refused, tmp_path, capsys):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/keep.txt").write_text("cat\ndog\n")
    (tmp_path / "list.txt").write_text("dog")
    report = Headless(None, capsys)(
        "evaluate", "--model", "m", "--erased", "e", "--concepts", tmp_path / "list.txt",
        "--keep", tmp_path / "sub/keep.txt",
    )  # fmt: skip
    assert report["exit_code"] == 2 and "'dog' is to be kept and erased (dog)" in report["error"]


def test_a_file_that_is_there_is_not_replaced(tmp_path, capsys):
    (tmp_path / "list.txt").write_text("dog")
    (tmp_path / "out.safetensors").write_text("mine")
    given = ("refine", "--model", "m", "--concepts", tmp_path / "list.txt", "--out", tmp_path / "out.safetensors")
    report = Headless(None, capsys)(*given)
    assert report["error"] == f"--out: {tmp_path}/out.safetensors exists; choose another name, or add --overwrite"
    assert (tmp_path / "out.safetensors").read_text() == "mine"


def test_the_report_is_the_last_line_or_a_file(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("dog -> -> sky"))
    given = ("erase", "--model", "m", "--concepts", "-", "--out", tmp_path / "out.safetensors")
    run = Headless(None, capsys)
    as_lines = run(*given, "--json-progress")
    assert as_lines["event"] == "report" and "line 1: more than one '->'" in as_lines["error"] and run.lines == []

    monkeypatch.setattr("sys.stdin", io.StringIO("dog -> -> sky"))
    from headless.cli import main

    assert main([str(part) for part in (*given, "--report", tmp_path / "report.json")], None) == 2
    seen = capsys.readouterr()
    assert seen.out == "" and seen.err.startswith("headless: -: concepts: line 1: ")
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["command"] == "erase" and report["exit_code"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


@pytest.mark.parametrize("command", ["erase", "refine", "train", "fuse", "evaluate", "prior"])
def test_help_says_the_exit_codes_and_every_option(command, capsys):
    from headless.cli import main
    from headless.settings import SETTINGS

    with pytest.raises(SystemExit) as ended:
        main([command, "--help"], None)
    said = capsys.readouterr().out
    assert ended.value.code == 0 and "0 done, 1 failed, 2 bad input (nothing was done), 130 stopped" in said
    assert all(setting.flag in said for setting in SETTINGS[command])
