"""dev.py: its command line, the environment, processes, the host it starts and stops."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from devtools import cache, cli, environment, host, process
from devtools.cache import DevError

REPO = Path(__file__).resolve().parent.parent
posix = pytest.mark.skipif(sys.platform == "win32", reason="signals and groups as POSIX has them")


# The command line


def test_what_follows_run_and_test_is_passed_on_in_order():
    for command in ("run", "test"):
        rest = ["--ui", "-x", "a", "--port", "3", "--", "b"]
        assert cli.parse([command, *rest]).arguments == rest
    assert cli.parse(["run", "--", "ls", "--help"]).arguments == ["ls", "--help"]
    options = cli.parse(["host", "--verbose", "DEBUG", "--port", "0", "--fast"])
    assert options.port == 0 and options.arguments == ["--verbose", "DEBUG", "--fast"]


@pytest.mark.parametrize("arguments", ["--help", "run --help", "test -h", "host --help", "demo -h"])
def test_help(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments.split())
    assert ended.value.code == 0 and "usage: dev.py" in capsys.readouterr().out


# The environment


class FakeSetup(environment._Setup):
    """The steps without pip: each leaves a file, and `fail_at` ends the set-up in the middle of one."""

    fail_at = None

    def _check_room(self):
        pass

    def _step(self, path: Path, name: str):
        path.mkdir(parents=True)
        (path / "half").write_text(name)
        if self.fail_at == name:
            raise KeyboardInterrupt
        (path / "whole").write_text(name)

    def _make_venv(self):
        self._remove(self.venv)
        self._step(self.venv, "venv")
        python = environment._venv_python(self.venv)
        python.parent.mkdir(parents=True)
        python.touch()

    def _fetch_host(self):
        self._remove(self.folder / "host")
        self._step(self.folder / "host" / "ComfyUI", "host")

    def _install(self):
        self._step(self.venv / "packages", "packages")


@pytest.mark.parametrize("fail_at", ["venv", "host", "packages"])
def test_an_interrupted_set_up_is_made_whole(tmp_path, monkeypatch, fail_at):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.setattr(environment, "_Setup", FakeSetup)
    monkeypatch.setattr(FakeSetup, "fail_at", fail_at)
    with pytest.raises(KeyboardInterrupt):
        environment.prepare(lambda line: None)
    monkeypatch.setattr(FakeSetup, "fail_at", None)
    found = environment.prepare(lambda line: None)
    assert (found.comfy / "whole").exists() and (found.python.parent.parent / "packages" / "whole").exists()
    assert not (tmp_path / "mace-comfyui" / f"env-{environment.environment_key()}" / "tmp").exists()
    # A second time nothing is made, and nothing said.
    assert environment.prepare(pytest.fail) == found


def test_the_lock_is_waited_for_and_released(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from devtools.cache import locked\n"
        "with locked(Path(sys.argv[1])):\n print('held', flush=True); time.sleep(2)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, tmp_path / "lock"], cwd=REPO, stdout=subprocess.PIPE)
    holder.stdout.readline()
    said = []
    with cache.locked(tmp_path / "lock", said.append):
        assert holder.wait(10) == 0
    assert len(said) == 1 and "Waiting" in said[0]


def test_too_little_room_is_said_before_anything_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "NEEDED_BYTES", 10**18)
    with pytest.raises(DevError, match=r"GB free and needs about .* XDG_CACHE_HOME"):
        environment._Setup(tmp_path, lambda line: None, 0).run()
    assert list(tmp_path.iterdir()) == []


@posix
def test_pip_failures_are_shown_with_advice(tmp_path):
    setup = environment._Setup(tmp_path, lambda line: None, 0)
    setup.hold = {}
    setup.temporary.mkdir()
    python = environment._venv_python(setup.venv)
    python.parent.mkdir(parents=True)
    python.write_text(
        "#!/bin/sh\necho 'ERROR: Could not find a version that satisfies the requirement torch'\n"
        "echo 'WARNING: Retrying after connection broken: Name or service not known'\nexit 1\n"
    )
    python.chmod(0o755)
    with pytest.raises(DevError, match=r"(?s)Installing x: pip failed.*Name or service not known.*Check the network"):
        setup._pip("Installing x", "install", "x")


@posix
def test_a_python_without_venv_is_told(tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'No module named venv'\nexit 1\n")
    python.chmod(0o755)
    setup = environment._Setup(tmp_path, lambda line: None, 0)
    setup.hold = {}
    monkeypatch.setattr(environment.sys, "executable", str(python))
    with pytest.raises(DevError, match=r"(?s)cannot make a venv.*No module named venv"):
        setup._make_venv()


def test_comfyui_path(tmp_path, monkeypatch):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path / "none"))
    with pytest.raises(DevError, match="not a ComfyUI folder"):
        environment.prepare()
    comfy = tmp_path / "ComfyUI"
    (comfy / "comfy").mkdir(parents=True)
    (comfy / "main.py").touch()
    python = comfy / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    monkeypatch.setenv("COMFYUI_PATH", str(comfy))
    assert environment.prepare() == environment.Environment(python, comfy, pinned=False)


def test_package_names_of_requirement_lines():
    lines = ["torch", "Torch==2", "torchsde", "  numpy>=1 ; x", "# torch", "", "-r other"]
    assert [environment._package(line) for line in lines] == ["torch", "torch", "torchsde", "numpy", "", "", "-r"]


# Processes


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state != "Z"
    except OSError:
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return not Path("/proc/self").exists()


FAMILY = textwrap.dedent("""
    import os, signal, subprocess, sys, time
    if sys.argv[1] == "stubborn":
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    children = [subprocess.Popen(sleep), subprocess.Popen(sleep, start_new_session=True)]
    print(os.getpid(), *[child.pid for child in children], flush=True)
    time.sleep(600)
""")


@posix
@pytest.mark.parametrize("kind", ["polite", "stubborn"])
def test_stop_ends_the_whole_family(kind):
    child = process.start([sys.executable, "-c", FAMILY, kind], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    pids = [int(pid) for pid in child.stdout.readline().split()]
    assert len(pids) == 3 and all(map(alive, pids))
    process.stop(child, grace=0.5)
    time.sleep(0.1)
    assert not any(map(alive, pids))


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_what_was_started(number):
    code = (
        "import sys; from devtools import process\nprocess.raise_on_signals()\n"
        "process.call([sys.executable, '-c', sys.argv[1], 'polite'], grace=2)"
    )
    runner = subprocess.Popen(
        [sys.executable, "-c", code, FAMILY], cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    pids = [int(pid) for pid in runner.stdout.readline().split()]
    runner.send_signal(number)
    assert runner.wait(10) != 0
    time.sleep(0.1)
    assert not any(map(alive, pids))


def test_exit_codes_are_passed_on():
    assert process.call([sys.executable, "-c", "raise SystemExit(7)"]) == 7


# The host


SERVER = textwrap.dedent("""
    import http.server, json, sys
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200); self.end_headers(); self.wfile.write(json.dumps(sys.argv[1:]).encode())
    port = int(sys.argv[sys.argv.index("--port") + 1])
    print("serving", flush=True)
    http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
""")


def fake_comfy(folder: Path, code: str) -> Path:
    (folder / "comfy").mkdir(parents=True)
    (folder / "main.py").write_text(code)
    return folder


def test_the_host_is_started_with_its_base_and_stopped(tmp_path):
    comfy, base = fake_comfy(tmp_path / "comfy", SERVER), tmp_path / "base"
    model = tmp_path / "model.safetensors"
    model.write_text("weights")
    with host.start(comfy, sys.executable, base, checkpoint=model, cpu=True, extra_args=["--fast"]) as running:
        arguments = host.get_json(running.url + "/system_stats")
        assert alive(running.process.pid) and "serving" in running.log_tail()
    assert running.process.poll() is not None and not alive(running.process.pid)
    assert arguments[-2:] == ["--cpu", "--fast"] and "--disable-api-nodes" in arguments
    assert arguments[arguments.index("--base-directory") + 1] == str(base)
    assert (base / "custom_nodes" / "mace-comfyui" / "dev.py").samefile(REPO / "dev.py")
    assert (base / "models" / "checkpoints" / "mace_demo.safetensors").read_text() == "weights"
    assert "TutorialCompleted" in (base / "user" / "default" / "comfy.settings.json").read_text()


def test_preparing_the_base_again_keeps_settings_and_follows_the_model(tmp_path):
    model = tmp_path / "a.safetensors"
    model.write_text("old")
    host.prepare_base(tmp_path / "base", REPO, model)
    settings = tmp_path / "base" / "user" / "default" / "comfy.settings.json"
    settings.write_text("{}")
    model.unlink()
    model.write_text("new")
    host.prepare_base(tmp_path / "base", REPO, model)
    assert settings.read_text() == "{}"
    assert (tmp_path / "base" / "models" / "checkpoints" / "mace_demo.safetensors").read_text() == "new"


def test_a_host_that_ends_at_once_shows_its_log(tmp_path):
    comfy = fake_comfy(tmp_path / "comfy", "raise SystemExit('no module named torch')")
    with pytest.raises(DevError, match="(?s)ended with code 1.*no module named torch"):
        host.start(comfy, sys.executable, tmp_path / "base", cpu=True)


def test_a_host_that_never_answers_is_stopped(tmp_path):
    comfy = fake_comfy(tmp_path / "comfy", "import os, time; print(os.getpid(), flush=True); time.sleep(600)")
    with pytest.raises(DevError, match="did not answer within 2 s"):
        host.start(comfy, sys.executable, tmp_path / "base", cpu=True, timeout=2)
    assert not alive(int((tmp_path / "base" / "host.log").read_text().splitlines()[0]))


def test_a_taken_port_is_named(tmp_path):
    comfy = fake_comfy(tmp_path / "comfy", SERVER)
    with host.start(comfy, sys.executable, tmp_path / "base", cpu=True) as running:
        with pytest.raises(DevError, match=f"Port {running.port} is not free"):
            host.start(comfy, sys.executable, tmp_path / "base2", port=running.port, cpu=True)


def test_a_folder_in_the_packs_place_is_not_touched(tmp_path):
    (tmp_path / "custom_nodes" / "mace-comfyui").mkdir(parents=True)
    with pytest.raises(DevError, match="in the way"):
        host.prepare_base(tmp_path)


# Progress, refusals, the sheet
