"""Half precision (mace.method.precision) and stopped runs (mace.method.train): nothing is lost."""

from itertools import count

import pytest
import torch

from mace.baselines.fitting import Fit, fit
from mace.method.loss import token_attention
from mace.method.precision import BACKOFF, FIRST, LossScale
from mace.method.train import Example, TrainSettings, draws, gradients, initial, train
from mace.pipeline.attention_loss import Batch, _Attend
from mace.pipeline.host import Attention

D, OUT, ROWS = 16, 24, 10
SHAPES = {"a.to_k": (OUT, D), "b.to_v": (OUT, D)}
EXAMPLES = [Example(name, images=3, prompts=4, latent_shape=(ROWS, 1)) for name in ("dog", "hot dog", "Monet")]
SETTINGS = TrainSettings(rank=2, steps=12, learning_rate=1e-2)
FP16, BF16 = torch.float16, torch.bfloat16


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Model:
    """A frozen two-layer network that computes in `dtype`; the loss is a large sum or a small one, as `gains` has it.

    The gains stand where the host's would: the loss is float32, and its gradient reaches the model's dtype as it is.
    """

    def __init__(self, dtype, gains=(1.0, 1.0, 1.0)):
        self.dtype, self.gains = dtype, torch.tensor(gains, dtype=torch.float64)
        self.prompts = random(3, 4, ROWS, D, seed=1)
        self.targets = random(3, 3, ROWS, OUT, seed=2)
        self.weights = {key: random(*shape, seed=3 + n) / D**0.5 for n, (key, shape) in enumerate(SHAPES.items())}
        self.last = random(OUT, OUT, seed=5) / OUT**0.5

    def __call__(self, drawn, stacked):
        wide = torch.promote_types(self.dtype, torch.float32)
        context = torch.stack([self.prompts[c, d.prompt] for c, d in enumerate(drawn)]).to(self.dtype)
        target = torch.stack([self.targets[c, d.image] + 0.1 * d.noise for c, d in enumerate(drawn)]).to(wide)
        hidden = torch.zeros(())
        for key, (ups, downs) in stacked.items():
            projected = context @ self.weights[key].to(self.dtype).T
            hidden = hidden + torch.tanh(projected + context @ downs.mT.to(self.dtype) @ ups.mT.to(self.dtype))
        out = (hidden @ self.last.to(self.dtype).T).to(wide)
        return (out - target).square().mean(dim=(1, 2)) * self.gains.to(wide)


def gradients_of(model, scale):
    """The gradients of the first step, as the training takes them."""
    stacked = initial(EXAMPLES, SHAPES, SETTINGS)
    drawn = [next(draws(example, SETTINGS)) for example in EXAMPLES]
    while True:
        for pair in stacked.values():
            for parameter in pair:
                parameter.grad = None
        scale.scaled(model(drawn, stacked)).backward()
        found = gradients(stacked)
        scale.unscale(found)
        norms = torch.stack([g.flatten(1).square().sum(1) for g in found]).sum(0).sqrt()
        if scale.fits(norms):
            return [g.clone() for g in found], norms


def same_loras(found, expected, **tolerance):
    for one, other in zip(found, expected, strict=True):
        for key, pair in one.items():
            for a, b in zip(pair, other[key], strict=True):
                torch.testing.assert_close(a, b, **tolerance)


def test_a_gradient_too_small_for_fp16_survives():
    gains = (1e-6, 1.0, 1e-7)
    exact, norms = gradients_of(Model(torch.float32, gains), LossScale(3, torch.float32))
    assert (norms > 0).all() and norms[0] < 1e-5
    lost, _ = gradients_of(Model(FP16, gains), LossScale(3, torch.float32))
    assert not lost[0][2].any() and not torch.allclose(lost[0][0], exact[0][0], rtol=0.1, atol=0)
    scale = LossScale(3, FP16)
    found, kept = gradients_of(Model(FP16, gains), scale)
    assert (scale.factors == FIRST).all()
    torch.testing.assert_close(kept, norms, rtol=1e-2, atol=0)
    for a, b in zip(found, exact, strict=True):
        for c in range(3):
            torch.testing.assert_close(a[c], b[c], rtol=0, atol=1e-2 * float(b[c].abs().max()))


def test_a_gradient_too_large_for_fp16_backs_off_for_its_concept_alone():
    gains = (1.0, 1e5, 1e-6)
    exact, norms = gradients_of(Model(torch.float32, gains), LossScale(3, torch.float32))
    scale = LossScale(3, FP16)
    found, kept = gradients_of(Model(FP16, gains), scale)
    first, second, third = scale.factors.tolist()
    assert first == third == FIRST and second < FIRST and (FIRST / second) % (1 / BACKOFF) == 0
    torch.testing.assert_close(kept, norms, rtol=1e-2, atol=0)


def test_training_in_fp16_is_training_in_float32():
    """With losses of very different size side by side, one of which overflows."""
    gains = (1.0, 1e5, 1e-6)
    settings = TrainSettings(rank=2, steps=12, learning_rate=1e-2, clip=1e-8)
    runs = [
        train(EXAMPLES, SHAPES, Model(dtype, gains), settings, computes_in=dtype) for dtype in (torch.float32, FP16)
    ]
    (exact, wanted), (found, losses) = runs
    torch.testing.assert_close(losses, wanted, rtol=1e-2, atol=0)
    for one, other in zip(found, exact, strict=True):
        for key in SHAPES:
            a, b = (pair[0] @ pair[1] for pair in (one[key], other[key]))
            assert float((a - b).norm()) < 0.05 * float(b.norm())


@pytest.mark.parametrize("dtype", [BF16, torch.float32, torch.float64])
def test_other_dtypes_are_not_scaled(dtype):
    scale = LossScale(2, dtype)
    losses = torch.tensor([0.1, 0.2], dtype=torch.float64)
    assert scale.factors.tolist() == [1, 1] and torch.equal(scale.scaled(losses), losses.sum())
    gradient = [random(2, 3)]
    before = gradient[0].clone()
    scale.unscale(gradient)
    assert torch.equal(gradient[0], before) and scale.fits(torch.tensor([1e30, 0.0]))
    with pytest.raises(ValueError, match="not finite"):
        scale.fits(torch.tensor([1.0, float("inf")]))


@pytest.mark.parametrize("dtype", [FP16, BF16, torch.float32])
def test_a_gradient_that_is_no_number_names_its_concept(dtype):
    """The root of B's norm, where B is 0: the loss is finite, its gradient is not at any factor."""

    def losses(drawn, stacked):
        found = Model(torch.float32)(drawn, stacked)
        return torch.stack([found[0], stacked["a.to_k"][0][1].square().sum().sqrt(), found[2]])

    with pytest.raises(ValueError, match="the gradient of hot dog is not finite in step 1"):
        train(EXAMPLES, SHAPES, losses, SETTINGS, computes_in=dtype)


def test_a_first_step_is_seen_in_float32_keys_and_not_in_bf16():
    """|B A e| of about 1e-5 of |k|, the paper's first step."""
    q, k = random(2, 9, 64).to(BF16), random(2, 7, 64, seed=1).to(BF16)
    change = 1e-5 * k.float() * random(2, 7, 64, seed=2).clamp(-3, 3).float()
    plain, moved = (token_attention(q, keys, 4) for keys in (k, k.float() + change))
    exact = token_attention(q.double(), k.double() + change, 4) - token_attention(q.double(), k.double(), 4)
    assert plain.dtype == torch.float32
    assert float((moved - plain - exact).norm()) < 0.05 * float(exact.norm())
    assert torch.equal(token_attention(q, (k.float() + change).to(BF16), 4), plain)


def test_the_loss_of_a_bf16_model_sees_the_first_step():
    """What the training attends with, given what a bf16 model gives it."""
    q, k, v = (random(2, n, 64, seed=n).to(BF16) for n in (16, 7, 8))
    v = v[:, :7]
    tokens = torch.tensor([[0.0, 1, 1, 0, 0, 0, 0]] * 2)
    batch = Batch(torch.zeros(2, 4, 4, 4), torch.ones(2), random(2, 7, D).float(), tokens, torch.ones(2, 8, 8))
    up, down = (1e-5 * random(2, 64, 1, seed=3)).float(), random(2, 1, D, seed=4).float()

    def loss(sign, *tensors):
        attend = _Attend(batch, {"layer": {"k": (sign * up, down)}}, "squared norm (paper)")
        assert attend("layer", Attention(*tensors, 4, (4, 4))).dtype == tensors[0].dtype
        return attend.losses["layer"].double()

    found = loss(1, q, k, v) - loss(0, q, k, v)
    exact = loss(1, q.double(), k.double(), v.double()) - loss(0, q.double(), k.double(), v.double())
    assert (exact != 0).all()
    torch.testing.assert_close(found, exact, rtol=0.3, atol=0)


def test_scores_beyond_fp16_stay_finite():
    q, k = torch.full((1, 4, 160), 300.0, dtype=FP16), torch.full((1, 5, 160), 300.0, dtype=FP16)
    k[:, 2] = 250.0
    assert not torch.isfinite(q[0] @ k[0].T).all()
    found = token_attention(q, k, 1)
    torch.testing.assert_close(found.double(), token_attention(q.double(), k.double(), 1), rtol=1e-4, atol=1e-7)


class Stopped(Exception):
    pass


@pytest.mark.parametrize(("last", "keep_every"), [(1, 100), (7, 100), (11, 100), (9, 4), (12, 5), (12, 100)])
def test_a_stopped_run_goes_on_as_if_it_had_not(last, keep_every):
    """Stopped in the report of step `last`, be it the last of all; goes on from there, to the bit."""
    model, options = Model(torch.float64), dict(dtype=torch.float64)
    whole, losses = train(EXAMPLES, SHAPES, model, SETTINGS, **options)
    kept = []

    def report(step, values):
        if step == last:
            raise Stopped

    with pytest.raises(Stopped):
        train(EXAMPLES, SHAPES, model, SETTINGS, report, keep=kept.append, keep_every=keep_every, **options)
    states = kept[-1]
    assert {state.step for state in states} == {last}
    assert [state.losses.tolist() for state in states] == losses[: states[0].step].T.tolist()
    reported = []
    again, more = train(
        EXAMPLES, SHAPES, model, SETTINGS, lambda step, _: reported.append(step), states=states, **options
    )
    assert reported == list(range(states[0].step + 1, SETTINGS.steps + 1))
    assert torch.equal(more, losses)
    same_loras(again, whole, rtol=0, atol=0)


def test_a_stopped_run_in_other_company_goes_on_too():
    """Concepts whose states are of one step may go on in any order, and with directions that are not trained."""
    directions = [random(2, D, seed=10 + c) for c in range(3)]
    model, options = Model(torch.float64), dict(dtype=torch.float64)
    whole, _ = train(EXAMPLES, SHAPES, model, SETTINGS, directions=directions, **options)
    kept = []
    train(EXAMPLES, SHAPES, model, SETTINGS, directions=directions, keep=kept.append, keep_every=6, **options)
    (states,) = kept
    assert all(down is None for state in states for _, down in state.moments.values())
    order = [2, 1, 0]
    picked = Model(torch.float64)
    picked.prompts, picked.targets = picked.prompts[order], picked.targets[order]
    again, _ = train(
        [EXAMPLES[c] for c in order], SHAPES, picked, SETTINGS, directions=[directions[c] for c in order],
        states=[states[c] for c in order], **options,
    )  # fmt: skip
    same_loras(again, [whole[c] for c in order], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("gain", [1e-6, 1.0, 1e5])
def test_baselines_train_in_fp16_too(gain):
    """Weights in float32 that a model of fp16 computes with; Adam does not mind how large a loss is."""

    def trained(dtype):
        weight = (random(OUT, D, seed=3) / D**0.5).float().requires_grad_(True)
        unused = torch.ones(3, requires_grad=True)

        def loss_of(generator):
            context = torch.randn(ROWS, D, generator=generator).to(dtype)
            out = torch.tanh(context @ weight.to(dtype).T).float()
            return (out - 0.5).square().mean() * gain

        losses = fit({"w": weight, "u": unused}, loss_of, Fit(8, 1e-2, clip=1e-8), computes_in=dtype)
        assert torch.equal(unused, torch.ones(3))
        return weight.detach(), losses

    (exact, _), (found, losses) = trained(torch.float32), trained(FP16)
    assert losses.dtype == torch.float32 and torch.isfinite(losses).all()
    start = (random(OUT, D, seed=3) / D**0.5).float()
    if gain < 1e5:
        assert float((found - exact).norm()) < 0.1 * float((exact - start).norm())
    else:
        # A step that overflows draws again, so the draws are others; it trains all the same.
        assert float((found - start).norm()) > 0.5 * float((exact - start).norm())


def test_a_baselines_gradient_that_is_no_number_is_told():
    weight, calls = torch.zeros(3, requires_grad=True), count()

    def loss_of(generator):
        next(calls)
        return weight.square().sum().sqrt()

    with pytest.raises(ValueError, match="the gradient is not finite in step 1"):
        fit({"w": weight}, loss_of, Fit(2, 1e-2), computes_in=FP16)
    assert next(calls) > 1 and not weight.any()
