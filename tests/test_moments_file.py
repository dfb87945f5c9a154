"""Files of moments, and of a refinement without them: what comes back is what was written, and nothing broken does."""

from dataclasses import replace

import pytest
import torch

from mace.concepts.concept import Concept, ConceptList
from mace.formats.lora_set import refinement_digest
from mace.formats.moments_file import MomentsError, shard_concepts, shard_moments, shard_to_file
from mace.formats.recipe_file import RefinementError, refinement_from_file, refinement_to_file
from mace.formats.records import RecordError
from mace.method.moments import ConceptMoments, pack
from mace.method.prior import PriorTexts, make_prior
from mace.method.refine import LowRank, Refinement, RefineWeights
from mace.method.span import RowMoments

WIDTH = 6
CONCEPTS = (Concept("dog", "sky", "object", ("hound",)), Concept("rose", "grass", "object", (), ("one {}",)))


def sums(seed: int, pooled: ConceptMoments | None = None, pairs: int = 40) -> ConceptMoments:
    drawn = torch.randn(3, WIDTH, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return ConceptMoments(drawn[0], pack(drawn[1] @ drawn[1].T), pack(drawn[2] @ drawn[2].T), pairs, 30, pooled)


def rows(seed: int) -> RowMoments:
    drawn = torch.randn(3, 5, WIDTH, generator=torch.Generator().manual_seed(seed))
    return RowMoments(drawn[0], drawn[1], drawn[2, :2], 5, 2)


def equal(first, second) -> bool:
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second) and first.dtype == second.dtype
    if hasattr(first, "__dataclass_fields__"):
        return type(first) is type(second) and all(equal(getattr(first, n), getattr(second, n)) for n in vars(first))
    if isinstance(first, tuple) and any(hasattr(own, "__dataclass_fields__") for own in first):
        return len(first) == len(second) and all(map(equal, first, second))
    return first == second


SHARDS = [(sums(0), sums(1)), (sums(0, sums(2, pairs=30)), sums(1, sums(3, pairs=30))), (rows(0), rows(1))]
SHARDS.append(tuple(replace(own, others=(sums(6 + i, pairs=9), sums(8 + i))) for i, own in enumerate(SHARDS[0])))


@pytest.mark.parametrize("made", SHARDS)
def test_a_shards_moments_come_back(made):
    tensors, metadata = shard_to_file(CONCEPTS, made)
    assert shard_concepts(metadata) == CONCEPTS
    for place, own in enumerate(made):
        # Only what is named after the place is read.
        part = {name: tensor for name, tensor in tensors.items() if name.startswith(f"{place}.")}
        assert equal(shard_moments(part, metadata, place), own)


def test_broken_moments_are_refused():
    tensors, metadata = shard_to_file(CONCEPTS, (sums(0), sums(1)))
    with pytest.raises(MomentsError, match="no moments of a shard"):
        shard_concepts({**metadata, "format": "mace-moments-2"})
    with pytest.raises(RecordError):
        shard_concepts({**metadata, "shard": "[]"})
    with pytest.raises(MomentsError, match="not finite"):
        shard_moments({**tensors, "0.total": tensors["0.total"] * float("nan")}, metadata, 0)
    with pytest.raises(MomentsError, match="do not fit each other"):
        shard_moments({**tensors, "0.cross": tensors["0.cross"][:4, :4]}, metadata, 0)
    with pytest.raises(KeyError):
        shard_moments({}, metadata, 0)


def refinement(delta, pooled=None, prior=None) -> Refinement:
    return Refinement(
        ConceptList(CONCEPTS, "demo model"), (sums(0), sums(1)), prior, RefineWeights(1e-4, 0.0, 2.0), 0.5, "keys",
        {"mu": "auto"}, delta, torch.randn(3, 12, WIDTH), -2, pooled, True,
    )  # fmt: skip


@pytest.mark.parametrize(
    "made",
    [
        refinement(torch.randn(WIDTH, WIDTH, dtype=torch.float64)),
        refinement(torch.randn(WIDTH, WIDTH, dtype=torch.float64), torch.randn(4, 4, dtype=torch.float64)),
        refinement(LowRank(torch.randn(WIDTH, 2), torch.randn(2, WIDTH))),
    ],
)
def test_a_refinement_comes_back_without_its_concepts(made):
    found = refinement_from_file(*refinement_to_file(made))
    assert found.concepts == () and found.concepts.preset == "demo model" and found.moments == ()
    assert refinement_digest(found) == refinement_digest(made)
    for name in set(vars(made)) - {"concepts", "moments"}:
        assert equal(getattr(found, name), getattr(made, name)), name


def test_a_refinement_brings_its_prior():
    gram = sums(5).cross @ sums(5).cross.T
    fingerprint = torch.randn(3, 12, WIDTH)
    prior = make_prior(
        gram, 2, None, (), fingerprint, "two captions", (), (None, None), PriorTexts(("a cat", "a mat"), ())
    )
    made = refinement(torch.randn(WIDTH, WIDTH, dtype=torch.float64), prior=prior)
    found = refinement_from_file(*refinement_to_file(made))
    assert torch.equal(found.prior.mean, prior.mean) and found.prior.texts == prior.texts


def test_a_broken_refinement_is_refused():
    tensors, metadata = refinement_to_file(refinement(torch.randn(WIDTH, WIDTH, dtype=torch.float64)))
    with pytest.raises(RefinementError, match="holds no refinement"):
        refinement_from_file(tensors, {**metadata, "format": "x"})
    with pytest.raises(RefinementError, match="not the one that it names"):
        refinement_from_file({**tensors, "delta": tensors["delta"] + 1}, metadata)
