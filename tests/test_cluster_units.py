"""What a cluster's runs share without Ray: units and their order, results' files, claims, what is refused."""

import importlib.util
import json
import os
import subprocess
import sys
import threading
import time

import pytest
import torch

from headless.cluster.connect import how_many
from headless.cluster.folder import BrokenResult, Folder, as_bytes, as_file, check, from_bytes, machine, read, signed
from headless.cluster.units import MOMENTS, Unit, units_of
from mace.concepts.concept import Concept
from tests.headless_runs import Headless

KEY, OTHER = "a" * 64, "b" * 64


def unit(key: str = KEY) -> Unit:
    return Unit(MOMENTS, 0, (), key)


@pytest.fixture
def folder(tmp_path):
    """Folders of several runs on one path, closed at the end."""
    opened = []

    def another(**options) -> Folder:
        opened.append(Folder(tmp_path / "units", **options))
        return opened[-1]

    yield another
    for own in opened:
        own.close()


def put(own: Folder, key: str = KEY, value: float = 1.0) -> None:
    tensors = {"x": torch.full((3, 2), value), "y": torch.arange(4, dtype=torch.float64)}
    own.put(own.file(unit(key)).name, as_file(tensors, signed(key, tensors, {"what": "it is"})))


def test_units_are_of_one_size_in_the_lists_order():
    concepts = [Concept(name, "sky", "object") for name in "abcdefg"]
    found = units_of(MOMENTS, concepts, 3, lambda some: "".join(concept.target for concept in some))
    assert [own.targets for own in found] == [["a", "b", "c"], ["d", "e", "f"], ["g"]]
    assert [own.key for own in found] == ["abc", "def", "g"] and [own.place for own in found] == [0, 1, 2]
    assert found[0].concepts[0] == {"target": "a", "mapping": "sky", "type": "object", "aliases": (), "templates": ()}
    assert units_of(MOMENTS, concepts, 7, lambda some: "")[0].name == "moments of a, b, c and 4 others"


def test_a_list_that_grows_keeps_its_full_units():
    concepts = [Concept(name, "sky", "object") for name in "abcd"]
    longer = [*concepts, Concept("e", "sky", "object")]
    keys = [[own.key for own in units_of(MOMENTS, some, 2, repr)] for some in (concepts, longer)]
    assert keys[1][:2] == keys[0]


def test_a_result_comes_back_as_it_was_written(folder):
    own = folder()
    assert not own.holds(unit())
    put(own)
    tensors, metadata = read(own.file(unit()))
    assert own.holds(unit()) and metadata["what"] == "it is" and tensors["y"].tolist() == [0, 1, 2, 3]
    again, told = from_bytes(as_bytes(tensors, metadata))
    assert told == metadata and all(torch.equal(again[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
        lambda data: b"",
        lambda data: data.replace(KEY.encode(), OTHER.encode()),
    ],
)
def test_a_broken_result_is_made_again(folder, damage, caplog):
    own = folder()
    put(own)
    path = own.file(unit())
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(BrokenResult):
        check(path, KEY)
    assert not own.holds(unit()) and not path.exists() and "is made again" in caplog.text


def test_a_write_that_fails_leaves_nothing(folder):
    own = folder()

    def full(path):
        path.write_text("half")
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        own.put("name", full)
    assert list(own.path.iterdir()) == []


def test_a_claim_is_one_runs_until_it_gives_it_back(folder):
    first, second = folder(), folder()
    assert first.claim(unit()) and first.claim(unit()) and not second.claim(unit()) and second.claim(unit(OTHER))
    first.release(unit())
    assert second.claim(unit()) and not first.claim(unit())
    second.close()
    assert first.claim(unit()) and first.claim(unit(OTHER))
    first.close()
    assert [path.name for path in first.path.rglob("*")] == ["claims"]


def test_what_was_left_half_written_long_ago_is_removed(folder):
    own = folder()
    put(own)
    for name, age in ((".old.tmp", 7200), (".new.tmp", 0)):
        (own.path / name).touch()
        os.utime(own.path / name, (time.time() - age,) * 2)
    own.tidy()
    assert {path.name for path in own.path.iterdir()} == {own.file(unit()).name, ".new.tmp", "claims"}
    own.forget(unit())
    assert not own.holds(unit())


def test_of_many_that_want_a_unit_one_gets_it(folder):
    runs = [folder() for _ in range(8)]
    for number in range(20):
        key, got = f"{number:064x}", []
        together = threading.Barrier(len(runs))

        def want(own, key=key, got=got, together=together):
            together.wait()
            if own.claim(unit(key)):
                got.append(own)

        threads = [threading.Thread(target=want, args=(own,)) for own in runs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(got) == 1


def test_a_claim_that_is_not_touched_is_taken_over_once(folder):
    """The clock of the folder is what counts; who held it may come back, and gives back what is his alone."""
    dead, second, third = folder(beat=1000), folder(beat=1000), folder(beat=1000)
    assert dead.claim(unit()) and not second.claim(unit())
    path = next(dead.path.glob("claims/*.1.claim"))
    written = json.loads(path.read_text())
    assert written["machine"] == machine() and written["pid"] == os.getpid()
    os.utime(path, (time.time() - 61,) * 2)
    assert second.claim(unit()) and not third.claim(unit())
    dead.release(unit())
    assert not third.claim(unit())
    second.release(unit())
    assert third.claim(unit())


def test_a_held_claim_is_touched(folder):
    own, other = folder(beat=0.05), folder(stale=30)
    assert own.claim(unit())
    path = next(own.path.glob("claims/*.claim"))
    os.utime(path, (time.time() - 1000,) * 2)
    end = time.monotonic() + 20
    while time.time() - path.stat().st_mtime > 500 and time.monotonic() < end:
        time.sleep(0.02)
    assert not other.claim(unit())


def test_a_claim_of_a_process_that_is_gone_is_nobodys(folder):
    """At once on the same machine; on another it may live, and its time must run out."""
    first = folder(beat=1000)
    assert first.claim(unit())
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (path,) = first.path.glob("claims/*.claim")
    path.write_text(json.dumps({**json.loads(path.read_text()), "pid": gone.pid}))
    here = path.read_text()
    path.write_text(here.replace(json.dumps(machine()), '"elsewhere"'))
    assert not folder().claim(unit())
    path.write_text(here)
    assert folder().claim(unit())


def test_a_claim_left_on_what_is_done_is_cleared(folder):
    """Its run ended between the result and giving it back. One that somebody holds stays."""
    held, other = folder(beat=1000), folder(beat=1000)
    assert held.claim(unit())
    other.clear(unit())
    (path,) = other.path.glob("claims/*.claim")
    os.utime(path, (time.time() - 61,) * 2)
    other.clear(unit())
    other.clear(unit(OTHER))
    assert not list(other.path.glob("claims/*.claim")) and other.claim(unit())


@pytest.mark.parametrize(
    "resources, asked, count",
    [
        ({"CPU": 64, "GPU": 8, "memory": 1e12}, None, 8),
        ({"CPU": 64, "memory": 64e9}, None, 4),
        ({"CPU": 2, "memory": 1e12}, None, 2),
        ({"CPU": 2, "memory": 8e9}, None, 1),
        ({}, None, 1),
        ({"GPU": 8}, 3, 3),
    ],
)
def test_how_many_workers(resources, asked, count):
    assert how_many(resources, asked) == count


def test_what_is_refused_before_anything_is_opened(tmp_path, capsys, monkeypatch):
    """Without Ray in this Python it is said how to get it; --aliases with --ray is refused, with the reason."""
    run, found = Headless(None, capsys), importlib.util.find_spec
    (tmp_path / "list.txt").write_text("dog")
    given = ("--model", "m", "--concepts", tmp_path / "list.txt", "--out", tmp_path / "o.safetensors", "--ray", "local")

    def refused(missing: str, *more) -> str:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else found(name) or True)
        report = run("erase", *given, *more)
        assert report["exit_code"] == 2
        return report["error"]

    assert refused("ray") == f"--ray needs Ray: {sys.executable} -m pip install -r requirements-cluster.txt"
    assert "clone the repository" in refused("headless.cluster")
    assert "--aliases: each search looks at the words of the whole list" in refused("", "--aliases")
    monkeypatch.undo()
    assert "argument --unit-loras: at least 1" in run("erase", *given, "--unit-loras", 0)["error"]
    assert [path.name for path in tmp_path.iterdir()] == ["list.txt"]
