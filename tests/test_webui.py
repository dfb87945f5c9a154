"""The tab's process and choices, without Gradio: what is asked of the headless command, what is seen, stopping it."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from mace.concepts.concept import TYPES
from mace.presets.presets import PAPER, PRESETS
from mace_webui import choices
from mace_webui.job import Job, State

REPO = Path(__file__).resolve().parent.parent


@pytest.fixture
def webui(tmp_path, demo_checkpoint):
    """A web UI's folders, with the demo model."""
    models, loras = tmp_path / "models/Stable-diffusion", tmp_path / "models/Lora"
    models.mkdir(parents=True)
    loras.mkdir()
    (models / "demo.safetensors").symlink_to(demo_checkpoint)

    def names():
        return sorted(path.stem for path in models.iterdir())

    return choices.WebUI(
        names,
        lambda name: models / f"{name}.safetensors",
        lambda: models,
        lambda: loras,
        list,
        str,
        lambda *given: given,
    )


@pytest.fixture
def job():
    own = Job()
    yield own
    own.stop(grace=30)


CHOSEN = {
    "checkpoint": "demo", "type": "object", "preset": PAPER, "gentle_strong": 0.0, "aliases": False, "strengths": "",
    "side": 64, "seed": 0, "name": "", "lora": True, "rank": 16,
}  # fmt: skip


def wait(job: Job, until, seconds=300) -> State:
    end = time.monotonic() + seconds
    while not until(job.state) and time.monotonic() < end:
        time.sleep(0.05)
    assert until(job.state), list(job.state.lines)
    return job.state


def ended(state: State) -> bool:
    return not state.running


def test_the_tab_offers_what_the_nodes_do():
    assert choices.TYPES == TYPES
    assert choices.presets() == list(PRESETS) and choices.PAPER == PAPER


def test_the_command_is_one_that_the_headless_parser_takes(webui):
    from headless.settings import parser

    chosen = {**CHOSEN, "aliases": True, "strengths": "dog = 0.5\n\n* = 1", "gentle_strong": -0.25, "name": "a/b "}
    found = parser().parse_args([str(part) for part in choices.arguments_of(webui, chosen)])
    assert found.concepts == ["-"] and found.strengths == ["dog = 0.5", "* = 1"]
    assert (found.set_aliases, found.set_gentle_strong, found.set_preset) == (True, -0.25, PAPER)
    assert Path(found.out).name == "a_b.safetensors" and Path(found.lora).parent == webui.loras()
    with pytest.raises(ValueError, match="choose a checkpoint"):
        choices.arguments_of(webui, {**CHOSEN, "checkpoint": None})


def test_nothing_is_replaced(webui):
    (webui.models() / "demo_erased.safetensors").touch()
    (webui.models() / "demo_erased_2.safetensors").touch()
    arguments = choices.arguments_of(webui, CHOSEN)
    assert arguments[arguments.index("--out") + 1] == webui.models() / "demo_erased_3.safetensors"


def test_before_and_after_are_those_of_the_last_run(webui, demo_checkpoint):
    """By their files, whatever the web UI calls them; in words where there is nothing to compare."""
    source, made = webui.models() / "demo.safetensors", webui.models() / "demo_erased.safetensors"
    made.touch()
    report = {"exit_code": 0, "model": str(source), "files": {"out": str(made)}}
    assert choices.compared(webui, report) == ("demo", "demo_erased")
    for none in (None, {"exit_code": 1, "status": "failed"}, {**report, "files": {}}):
        with pytest.raises(ValueError, match="erase something first"):
            choices.compared(webui, none)
    # A side of 0 or none is what the model was made for.
    assert [choices.side_of({**report, "native_side": 1024}, asked) for asked in (0, None, 640)] == [1024, 1024, 640]
    made.unlink()
    with pytest.raises(ValueError, match="no longer in its folder"):
        choices.compared(webui, report)


def test_a_bad_list_is_refused_with_its_line(webui, job):
    """The real command, in the environment that dev.py has."""
    job.start(choices.arguments_of(webui, CHOSEN), "dog\nship -> a -> b")
    with pytest.raises(RuntimeError, match="an erasure is running"):
        job.start([], "")
    state = wait(job, ended)
    assert state.report["exit_code"] == 2 and "line 2: more than one '->'" in choices.ended(state)
    assert choices.bar(state) == "" and list(webui.loras().iterdir()) == []


@pytest.mark.long
def test_cancelling_stops_the_process_and_leaves_nothing(webui, job):
    job.start(choices.arguments_of(webui, CHOSEN), "dog")
    state = wait(job, lambda state: state.stage == "Estimate" or not state.running)
    assert state.running and "Estimate" in choices.bar(state) and choices.ended(state) == "**Running** ..."
    job.stop()
    state = wait(job, ended)
    assert (state.report["status"], state.report["exit_code"]) == ("stopped", 130)
    assert sorted(path.name for path in webui.models().iterdir()) == ["demo.safetensors"]
    assert list(webui.loras().iterdir()) == []


def test_a_process_that_cannot_start_is_said(job):
    job = Job([sys.executable, "-c", "raise SystemExit('no such thing')"])
    job.start([], "dog")
    state = wait(job, ended)
    assert state.report["status"] == "failed" and choices.ended(state) == "**failed**: no such thing"


def test_the_installer_says_what_it_finds_and_never_fails(tmp_path):
    """As A1111 runs it, in extensions/."""
    (tmp_path / "extensions").mkdir()
    (tmp_path / "extensions/mace").symlink_to(REPO)
    run = subprocess.run(
        [sys.executable, "-I", "-S", tmp_path / "extensions/mace/install.py"], capture_output=True, text=True
    )
    assert run.returncode == 0 and "the tab Erase concepts: its first run makes an environment" in run.stdout


def test_the_web_uis_python_imports_nothing_of_mace():
    """Its pins, such as pydantic 1, must not meet ours."""
    code = "import sys; import mace_webui.choices, mace_webui.job; print(*sorted(sys.modules))"
    run = subprocess.run([sys.executable, "-I", "-S", "-c", f"import sys; sys.path[:0] = [{str(REPO)!r}]; {code}"],
                         capture_output=True, text=True, check=True)  # fmt: skip
    assert not {"mace", "torch", "pydantic", "headless", "devtools"} & set(run.stdout.split())
