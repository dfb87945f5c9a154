"""Erasing on real Ray clusters of several processes: the same bytes whoever does it, nothing lost, nothing twice."""

import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from benchmarks.cluster import ONE_BY_ONE, SMALL
from devtools import process
from tests.cluster_runs import Nodes, Run, copied
from tests.headless_runs import same, settings_of, tensors

pytestmark = [pytest.mark.long, pytest.mark.host]

CONCEPTS = ("dog", "cat", "ship", "horse")


@pytest.fixture(scope="module")
def started():
    """Starts commands, which end with the module."""
    runs: list[Run] = []

    def start(*arguments) -> Run:
        runs.append(Run(*arguments))
        return runs[-1]

    yield start
    for run in runs:
        run.stop()


@pytest.fixture(scope="module")
def nodes():
    """A cluster of two nodes with room for a worker each."""
    running = Nodes(2)
    yield running
    running.stop()


@pytest.fixture(scope="module")
def listed(tmp_path_factory):
    path = tmp_path_factory.mktemp("list") / "list.txt"
    path.write_text("\n".join(f"{name} -> sky" for name in CONCEPTS))
    return path


@pytest.fixture(scope="module")
def training(demo_checkpoint, listed):
    """The arguments of a training of all concepts into a file, one a unit."""
    return lambda out, *more: (
        "train", "--model", demo_checkpoint, "--concepts", listed, *SMALL, *ONE_BY_ONE, "--out", out, *more
    )  # fmt: skip


@pytest.fixture(scope="module")
def alone(started, training, tmp_path_factory):
    """(what one worker of this machine's own cluster makes, its report, the folder of its units)."""
    base = tmp_path_factory.mktemp("alone")
    out, shared = base / "out.safetensors", base / "units"
    run = started(base, *training(out, "--ray", "local", "--ray-workers", 1, "--shared", shared))
    run.until(event="unit", state="started", kind="loras")
    below = [run.process.pid, *process.descendants(run.process.pid)]
    listening = {
        connection.laddr.ip
        for pid in below
        if psutil.pid_exists(pid)
        for connection in psutil.Process(pid).net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    report = run.report()
    assert report["status"] == "done", report.get("error")
    return out, report, shared, run, below, listening


@pytest.fixture
def fresh(alone, tmp_path):
    """(a base directory, a folder of units that has the moments)."""
    return tmp_path / "base", copied(alone[2], tmp_path / "units", "moments")


def units(report: dict, kind: str = "loras") -> dict:
    return report["cluster"]["units"][kind]


def claims(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.is_file() and path.suffix != ".safetensors"]


def ended(pids) -> bool:
    """Whether none of these processes is left, within some seconds."""
    end = time.monotonic() + 30
    while any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids):
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
    return True


def test_a_cluster_of_this_machines_own_is_quiet_listens_on_loopback_and_ends(alone):
    out, report, shared, run, below, listening = alone
    assert listening and all(address.startswith("127.") or address.endswith(":127.0.0.1") for address in listening)
    assert run.stderr == "" and len(below) > 4 and ended(below)
    assert units(report) == {"before": 0, "now": 4, "elsewhere": 0, "failed": 0} == units(report, "moments")
    assert [event for event in run.events if event["event"] == "progress"][-1]["value"] == 4
    assert len(report["cluster"]["unit_seconds"]["loras"]) == 4 and report["cluster"]["bytes"] > 4 * 9e6
    assert claims(shared) == []


def test_several_workers_make_the_same_bytes(alone, started, training, tmp_path):
    """And so do results that are sent instead of written into a shared folder."""
    run = started(tmp_path / "base", *training(tmp_path / "out", "--ray", "local", "--ray-workers", 3))
    report = run.report()
    assert report["status"] == "done", report.get("error")
    assert len({event["pid"] for event in run.events if event["event"] == "worker"}) > 1
    assert same(tmp_path / "out", alone[0])
    there = sorted(path.name for path in alone[2].iterdir() if path.is_file())
    folder = Path(report["cluster"]["folder"])
    assert (
        folder == tmp_path / "base/user/mace/units"
        and sorted(path.name for path in folder.iterdir() if path.is_file()) == there
    )
    assert all(same(folder / name, alone[2] / name) for name in there)


def test_an_erasure_is_that_of_one_process_to_the_bit(started, demo_checkpoint, tmp_path):
    """Where the concepts that train side by side are the same ones: moments, T, pictures, masks, LoRAs, fusion."""
    preset = '{"name": "short", "lora": {"*": {"rank": 2, "steps": 3, "learning_rate": 0.003}}}'
    (tmp_path / "list.txt").write_text("dog | hound -> sky\nship -> sky\n")
    found = {}
    for name, more in (("plain", ()), ("ray", ("--ray", "local", "--ray-workers", 2, "--unit-moments", 1))):
        presets = tmp_path / name / "models/mace_presets"
        presets.mkdir(parents=True)
        (presets / "short.json").write_text(preset)
        out, loras = tmp_path / f"{name}.safetensors", tmp_path / f"{name}_loras.safetensors"
        run = started(
            tmp_path / name, "erase", "--model", demo_checkpoint, "--concepts", tmp_path / "list.txt",
            "--preset", "short", "--width", 64, "--height", 64, "--strengths", "dog = 0.5",
            "--out", out, "--loras", loras, *more,
        )  # fmt: skip
        report = run.report()
        assert report["status"] == "done", report.get("error")
        found[name] = out, loras, report
    (out, loras, _), (other, other_loras, report) = found.values()
    assert same(out, other) and same(loras, other_loras) and settings_of(out) == settings_of(other)
    assert units(report)["now"] == 1 and units(report, "moments")["now"] == 2
    assert "2 concepts on 1 workers" in report["estimate"]["lines"][0]


def test_a_worker_killed_amid_a_unit(alone, fresh, started, training, nodes):
    base, shared = fresh
    run = started(base, *training(base / "out", "--ray", nodes.address, "--ray-workers", 2, "--shared", shared))
    begun = run.until(event="unit", state="started", kind="loras")
    os.kill(begun["pid"], signal.SIGKILL)
    report = run.report()
    assert report["status"] == "done", report.get("error")
    assert run.units(state="again") == [tuple(begun["concepts"])] and report["cluster"]["workers_lost"] == 1
    assert units(report) == {"before": 0, "now": 4, "elsewhere": 0, "failed": 0}
    assert same(base / "out", alone[0]) and claims(shared) == []


def test_a_driver_killed_and_started_again(alone, fresh, started, training, nodes):
    base, shared = fresh
    given = training(base / "out", "--ray", nodes.address, "--ray-workers", 2, "--shared", shared)
    first = started(base, *given)
    first.until(event="unit", state="now", kind="loras")
    os.kill(first.process.pid, signal.SIGKILL)
    first.process.wait()
    assert claims(shared)
    done = len(list(shared.glob("*.loras.safetensors")))
    report = started(base, *given).report()
    assert report["status"] == "done", report.get("error")
    assert done >= 1 and units(report) == {"before": done, "now": 4 - done, "elsewhere": 0, "failed": 0}
    assert same(base / "out", alone[0]) and [name for name in claims(shared) if "claim" in name] == []


def test_two_drivers_on_one_folder(alone, fresh, started, training, nodes):
    base, shared = fresh
    how = ("--ray", nodes.address, "--ray-workers", 1, "--shared", shared)
    runs = [started(base / name, *training(base / f"{name}.safetensors", *how)) for name in ("one", "two")]
    reports = [run.report() for run in runs]
    assert [report["status"] for report in reports] == ["done", "done"], [report.get("error") for report in reports]
    assert sorted(unit for run in runs for unit in run.units(state="now")) == sorted((name,) for name in CONCEPTS)
    assert sorted(unit for run in runs for unit in run.units(state="started")) == sorted((name,) for name in CONCEPTS)
    assert all(units(report)["failed"] == 0 for report in reports) and claims(shared) == []
    assert same(base / "one.safetensors", alone[0]) and same(base / "two.safetensors", alone[0])


def test_a_unit_that_always_fails_is_told_and_the_others_are_done(alone, fresh, started, training, nodes):
    """Its result cannot be written. The others are kept: when it can be, that one alone is done."""
    base, shared = fresh
    key = next(e["key"] for e in alone[3].events if e.get("kind") == "loras" and e["concepts"] == ["cat"])
    (shared / f"{key}.loras.safetensors" / "full").mkdir(parents=True)
    given = training(base / "out", "--ray", nodes.address, "--ray-workers", 2, "--shared", shared)
    run = started(base, *given)
    report = run.report()
    assert (report["exit_code"], report["files"]) == (1, {})
    assert report["error"].startswith("1 of 4 units failed, the others are kept: loras of cat: ")
    (failed,) = report["cluster"]["failed"]
    assert failed["concepts"] == ["cat"] and failed["error"] and len(run.units(state="started", concepts=["cat"])) == 2
    assert units(report) == {"before": 0, "now": 3, "elsewhere": 0, "failed": 1} and not (base / "out").exists()

    partial = started(base, *training(base / "partial", *given[-6:], "--partial")).report()
    assert partial["status"] == "done" and units(partial)["before"] == 3
    left = {key.partition(".")[2] for key in tensors(base / "partial")}
    assert left and sum(key.endswith(".losses") for key in tensors(base / "partial")) == 3

    os.rmdir(shared / f"{key}.loras.safetensors" / "full")
    os.rmdir(shared / f"{key}.loras.safetensors")
    report = started(base, *given).report()
    assert report["status"] == "done" and units(report) == {"before": 3, "now": 1, "elsewhere": 0, "failed": 0}
    assert same(base / "out", alone[0])


def test_a_concept_that_cannot_be_read_is_left_out(alone, fresh, started, demo_checkpoint, nodes):
    """With --partial the list goes on without it; what broke on the disk is made again."""
    base, shared = fresh
    broken = next(shared.glob("*.moments.safetensors"))
    data = bytearray(broken.read_bytes())
    data[-1] ^= 1
    broken.write_bytes(data)
    base.mkdir()
    long = " ".join(["word"] * 90)
    (base / "list.txt").write_text("\n".join(f"{name} -> sky" for name in (*CONCEPTS, long)))
    run = started(
        base, "refine", "--model", demo_checkpoint, "--concepts", base / "list.txt", "--out", base / "out", *ONE_BY_ONE,
        "--ray", nodes.address, "--ray-workers", 1, "--shared", shared, "--partial",
    )  # fmt: skip
    report = run.report()
    assert report["status"] == "done", report.get("error")
    assert units(report, "moments") == {"before": 3, "now": 1, "elsewhere": 0, "failed": 1}
    assert report["cluster"]["failed"][0]["concepts"] == [long] and "tokens" in report["cluster"]["failed"][0]["error"]
    erased = [own["target"] for own in settings_of(base / "out")["stages"][0]["concepts"]]
    assert erased == list(CONCEPTS)


def test_it_stops_when_asked(fresh, started, training, nodes):
    base, shared = fresh
    run = started(base, *training(base / "out", "--ray", nodes.address, "--ray-workers", 1, "--shared", shared))
    begun = run.until(event="unit", state="started", kind="loras")
    os.kill(run.process.pid, signal.SIGTERM)
    report = run.report()
    assert (report["exit_code"], report["status"]) == (130, "stopped") and report["files"] == {}
    assert claims(shared) == [] and ended([begun["pid"]])


def test_no_cluster_at_an_address(started, training, tmp_path):
    report = started(tmp_path / "base", *training(tmp_path / "out", "--ray", "127.0.0.1:1")).report()
    assert report["exit_code"] == 2 and report["error"].startswith("--ray 127.0.0.1:1: ")


def test_a_node_lost(alone, fresh, started, training, nodes):
    """The last of the tests on these nodes, of which one is left."""
    base, shared = fresh
    run = started(base, *training(base / "out", "--ray", nodes.address, "--ray-workers", 2, "--shared", shared))
    ready = {run.until(event="worker", state="ready")["pid"] for _ in range(2)}
    assert len(ready) == 2
    nodes.lose()
    report = run.report()
    assert report["status"] == "done", report.get("error")
    assert report["cluster"]["workers_lost"] == 1 and units(report)["now"] == 4
    assert same(base / "out", alone[0]) and claims(shared) == []
