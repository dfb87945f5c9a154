"""Nothing asks a device without float64 for it: what is computed from tensors that lie there is what the CPU gives."""

import pytest
import torch

from mace.baselines.oce import OceWeights, kept_moment, oce
from mace.baselines.speed import Preserved, SpeedSettings, edits_of, erasing_alone, speed
from mace.concepts.aliases import noise_errors
from mace.masks.maps import mask_of_map
from mace.measure.nearby import moved
from mace.method.lora import approximate, merge, per_sample
from mace.method.metric import reading_metric
from mace.method.moments import Gram, concept_moments, pooled_moments
from mace.method.refine import weight_delta
from mace.method.span import row_moments
from mace.method.tokens import Pairing
from tests.no_float64 import DEVICE, REFUSED, float32_device

WIDTH, CPU = 6, torch.device("cpu")


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def words_nearby(at):
    weights = [(at(normal(4, WIDTH, seed=n)), at(normal(4, WIDTH, seed=n + 5))) for n in range(2)]
    return moved(normal(3, 5, WIDTH), normal(5, WIDTH, seed=1), weights)


def metric(at):
    return reading_metric((at(normal(8, WIDTH, seed=n)) for n in range(2)), at(torch.zeros(1)).device)


def low_rank(at):
    up, down, missed = approximate(at(normal(8, WIDTH)), 2)
    return up.cpu() @ down.cpu(), torch.tensor(missed)


def moments(at):
    pairings = [Pairing((1, 2), (1, 3), (3,)), Pairing((2,), (4,), (1,))]
    batch = (at(normal(2, 5, WIDTH, dtype=torch.float16)), at(normal(2, 5, WIDTH, seed=1)), pairings)
    where = at(torch.zeros(1)).device
    found, rows = concept_moments([batch], WIDTH, where), row_moments([batch])
    return found.cross, found.paired, found.total, rows.cross, rows.total


def pooled(at):
    found = pooled_moments(at(normal(3, WIDTH)), at(normal(3, WIDTH, seed=1)), at(torch.zeros(1)).device)
    return found.cross, found.paired


def gram(at):
    found = Gram(WIDTH, at(torch.zeros(1)).device)
    found.add(at(normal(3, 5, WIDTH, dtype=torch.bfloat16)))
    return found.matrix


def refined(at):
    return weight_delta(at(normal(4, WIDTH)), normal(WIDTH, WIDTH, seed=1).double()).cpu()


def merged(at):
    extra = per_sample(at(normal(2, 5, WIDTH)), at(normal(2, 4, 1)), at(normal(2, 1, WIDTH)))
    return merge(at(normal(4, WIDTH)), normal(4, 2), normal(2, WIDTH)).cpu(), extra.cpu()


def masks(at):
    return mask_of_map(at(normal(3, 8, 8).square()), 32, 32).cpu()


def closed_form_baselines(at):
    tokens = normal(3, WIDTH, seed=2).double()
    pairing = Pairing((1, 2), (1, 3), (3,))
    weight = at(normal(8, WIDTH))
    kept = kept_moment(torch.eye(WIDTH), None, OceWeights())
    found = edits_of(concept_moments([(normal(1, 5, WIDTH), normal(1, 5, WIDTH, seed=1), [pairing])], WIDTH, CPU))
    preserved = Preserved(tokens, tokens[:1])
    edit = speed(weight, found, preserved, erasing_alone(found), SpeedSettings(), torch.Generator().manual_seed(0))
    return oce(weight, tokens, tokens.flip(0) + 1, kept, 1.0), edit.change


def aliases(at):
    return noise_errors(at(normal(3, 4, 8, 8)), at(normal(1, 4, 8, 8, seed=1)), at(normal(3, seed=2).exp()))


COMPUTED = [
    words_nearby,
    metric,
    low_rank,
    moments,
    pooled,
    gram,
    refined,
    merged,
    masks,
    closed_form_baselines,
    aliases,
]


@pytest.mark.parametrize("compute", COMPUTED, ids=lambda compute: compute.__name__)
def test_what_lies_on_such_a_device_is_read_alike(compute):
    expected = compute(lambda tensor: tensor)
    with float32_device() as device:
        found = compute(lambda tensor: tensor.to(DEVICE))
    assert device.computed
    # Sums of another order.
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


def test_the_stand_in_has_all_but_float64():
    with float32_device():
        held = normal(2, 3).to(DEVICE)
        assert held.device == DEVICE
        torch.testing.assert_close((held @ held.mT).half().cpu(), (normal(2, 3) @ normal(2, 3).mT).half())
        assert held.cpu().double().dtype == torch.float64
        for widened in (
            lambda: held.double(),
            lambda: held.to("cpu", torch.float64),
            lambda: normal(2, 3).double().to(DEVICE),
            lambda: torch.zeros(3, dtype=torch.float64, device=DEVICE),
        ):
            with pytest.raises(TypeError, match=REFUSED):
                widened()
