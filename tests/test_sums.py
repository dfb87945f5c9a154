"""Lists too long for memory: the same solves from sums in memory and single concepts on the disk."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from operator import attrgetter

import pytest
import torch

from devtools.cache import REPO
from mace.method.fuse import FuseWeights, fuse
from mace.method.lora import Lora
from mace.method.moments import ConceptMoments, pack, unpack
from mace.method.refine import RefineWeights, pooled_refinement, refinement
from mace.method.sums import StreamedMoments, collect_moments, gather_moments, pooled_of, texts_of

WIDTH, POOLED, COUNT = 12, 5, 7
REFINE, FUSE = RefineWeights(lambda1=1e-2, mu=0.5), FuseWeights(lambda2=2e-2, mu=0.3)
KEYS = ("to_k", "to_v")


def change(moments):
    """A_i - G_i, or the sum of them."""
    return moments.change if hasattr(moments, "change") else moments.cross - unpack(moments.paired)


PARTS = (change, attrgetter("paired"), attrgetter("total"))


def normal(*shape, seed):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def moments_of(seed, width=WIDTH):
    f, g, more = (normal(30, width, seed=10 * seed + k) for k in range(3))
    return ConceptMoments(g.T @ f, pack(f.T @ f), pack(f.T @ f + more.T @ more), 30, 4)


def lora(seed, rank=2) -> Lora:
    def of(key):
        place = KEYS.index(key)
        return tuple(normal(*shape, seed=50 * seed + place).float() for shape in ((8, rank), (rank, WIDTH)))

    return {key: of(key) for key in KEYS}


LIST = [
    replace(
        moments_of(i), pooled=moments_of(100 + i, POOLED), others=(moments_of(200 + i), moments_of(300 + i, POOLED))
    )
    for i in range(COUNT)
]
LORAS = [lora(i) for i in range(COUNT - 1)] + [{}]
PRIOR = normal(50, WIDTH, seed=900)
PRIOR = PRIOR.T @ PRIOR


@pytest.fixture(scope="module")
def streamed(tmp_path_factory):
    return StreamedMoments(iter(LIST), tmp_path_factory.mktemp("moments"))


def close(found, expected, tolerance):
    assert float((found - expected).norm()) <= tolerance * float(expected.norm())


def test_sums_are_exact_and_single_concepts_rounded(streamed):
    for of in PARTS:
        close(of(streamed), sum(of(own) for own in LIST), 1e-14)
        for own, stored in zip(LIST, streamed, strict=True):
            assert torch.equal(of(stored), of(own).float().double())
            for mine, theirs in zip((stored.pooled, *stored.others), (own.pooled, *own.others), strict=True):
                assert torch.equal(of(mine), of(theirs).float().double()) and mine.width == theirs.width
    for own, stored in zip(LIST, streamed, strict=True):
        close(stored.cross, own.cross, 1e-6)
    assert [(own.pairs, own.prompts, own.size) for own in streamed] == [(o.pairs, o.prompts, o.size) for o in LIST]
    assert all(own.bytes == 0 for own in streamed)


@pytest.mark.parametrize("strengths", [None, [1.0] * COUNT, [0.5] * COUNT, [1, 0, 0.2, 0, 0.9, 1, 0]], ids=str)
def test_the_same_solves(streamed, strengths):
    """To rounding where no concept's own moments are needed, to float32's where they are."""
    exact = 1e-12 if strengths in (None, [1.0] * COUNT) else 1e-6
    given = (PRIOR, None, strengths)
    close(refinement(streamed, REFINE, *given), refinement(LIST, REFINE, *given), exact)
    own = (None, None, strengths)
    close(pooled_refinement(streamed, REFINE, *own), pooled_refinement(LIST, REFINE, *own), exact)
    for mine, theirs, width in zip(texts_of(streamed), texts_of(LIST), (WIDTH, WIDTH, POOLED), strict=True):
        prior = PRIOR if width == WIDTH else None
        close(
            refinement(mine, REFINE, prior, None, strengths), refinement(theirs, REFINE, prior, None, strengths), exact
        )
    found, expected = (fuse(own, LORAS, REFINE, FUSE, *given) for own in (streamed, LIST))
    close(found.shared, expected.shared, exact)
    for key in KEYS:
        assert torch.equal(found.stacks[key][0], expected.stacks[key][0])
        close(found.stacks[key][1], expected.stacks[key][1], 1e-6)


def test_many_loras_are_kept_as_products(monkeypatch):
    module = __import__("mace.method.fuse", fromlist=["fuse"])
    expected = fuse(LIST, LORAS, REFINE, FUSE, PRIOR)
    monkeypatch.setattr(module, "MOST_STACKED", 4)
    found = fuse(LIST, LORAS, REFINE, FUSE, PRIOR)
    assert not found.stacks and all(key in found for key in KEYS) and "other" not in found
    for key in KEYS:
        weight = normal(8, WIDTH, seed=77).float()
        close(found.delta(key, weight), expected.delta(key, weight), 1e-5)
    with pytest.raises(ValueError, match="of another model"):
        found.delta("to_k", torch.zeros(9, WIDTH))


def test_a_list_goes_to_the_disk_where_it_is_long(tmp_path):
    each = LIST[0].bytes
    assert gather_moments(iter(LIST), COUNT * each) == tuple(LIST)
    found = gather_moments(iter(LIST), 3 * each, tmp_path)
    assert isinstance(found, StreamedMoments) and len(found) == COUNT and len(pooled_of(found)) == COUNT
    assert torch.equal(found[COUNT - 1].total, LIST[-1].total.float().double())
    # One by one they are rounded: taken together again, they are the list.
    assert collect_moments(iter(found)) is found and collect_moments(iter(LIST)) == tuple(LIST)
    assert collect_moments(found[1:]) == tuple(found[1:]) and collect_moments(reversed(found)) == (*reversed(found),)
    plain = gather_moments((replace(own, pooled=None, others=()) for own in LIST), 0, tmp_path)
    assert plain.pooled is None and plain[0].pooled is None and plain[0].others == ()
    with pytest.raises(ValueError, match="no moments"):
        StreamedMoments([])


def test_what_cannot_be_written_is_an_error_of_the_disk(tmp_path):
    with pytest.raises(OSError):
        StreamedMoments(iter(LIST), tmp_path / "missing")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is told in this unit on Linux")
def test_two_hundred_concepts_of_full_size_take_little_memory():
    """1.9 GB of moments in memory otherwise; torch, the LoRAs and the synthetic model are 0.8."""
    found = json.loads(in_process("--one", "200"))
    assert found["concepts"] == 200 and found["peak_bytes"] < 1.2e9


def in_process(*arguments):
    command = [sys.executable, "-m", "benchmarks.long_lists", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, check=True, cwd=REPO, env=environment, capture_output=True, text=True).stdout
