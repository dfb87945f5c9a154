"""What the baselines that train minimise and how, against the equations written out in float64."""

import math

import pytest
import torch

from mace.baselines.fitting import Fit, fit
from mace.baselines.objectives import ablation_loss, denoised, descent, esd_loss

PROMPTS, SIDE = 4, 3


class Model:
    """eps(x, sigma, p) = tanh(gain_p x + shift_p sigma): depends on all that it is given."""

    def __init__(self, seed):
        generator = torch.Generator().manual_seed(seed)
        self.gain, self.shift = (
            torch.randn(PROMPTS, generator=generator, dtype=torch.float64).requires_grad_(True) for _ in range(2)
        )

    def __call__(self, x, sigma, prompts):
        gain, shift = (part[prompts].view(-1, 1, 1, 1) for part in (self.gain, self.shift))
        return torch.tanh(gain * x + shift * sigma.view(-1, 1, 1, 1))

    def at(self, value, sigma, prompt):
        return math.tanh(self.gain[prompt].item() * value + self.shift[prompt].item() * sigma)


def sample(seed=5):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 1, SIDE, SIDE, generator=generator, dtype=torch.float64)
    return x, torch.tensor([0.7, 2.0], dtype=torch.float64)


def values(x, sigma):
    """(value, its sigma, its sample) of each element."""
    return [(float(v), float(sigma[b]), b) for b in range(len(x)) for v in x[b].flatten()]


@pytest.mark.parametrize("eta", [0.0, 1.0, 2.5])
def test_esd(eta):
    edited, original, (x, sigma) = Model(0), Model(1), sample()
    concept, nothing = [2, 3], 0
    loss = esd_loss(edited, original, x, sigma, torch.tensor(concept), torch.tensor([nothing] * 2), eta)
    squares = []
    for value, level, b in values(x, sigma):
        bare, named = original.at(value, level, nothing), original.at(value, level, concept[b])
        squares.append((edited.at(value, level, concept[b]) - (bare - eta * (named - bare))) ** 2)
    assert float(loss) == pytest.approx(sum(squares) / len(squares), rel=1e-12)
    loss.backward()
    assert original.gain.grad is None and edited.gain.grad[2] != 0 and edited.gain.grad[0] == 0


def test_ablation():
    model, (x, sigma) = Model(0), sample()
    target, anchor = [1, 2], [3, 0]
    loss = ablation_loss(model, x, sigma, torch.tensor(target), torch.tensor(anchor))
    squares = [(model.at(v, s, target[b]) - model.at(v, s, anchor[b])) ** 2 for v, s, b in values(x, sigma)]
    assert float(loss) == pytest.approx(sum(squares) / len(squares), rel=1e-12)
    loss.backward()
    slope = 0.0
    for v, s, b in values(x, sigma):
        if b == 0:
            out = model.at(v, s, target[0])
            slope += 2 * (out - model.at(v, s, anchor[0])) * (1 - out**2) * v / len(squares)
    assert float(model.gain.grad[1]) == pytest.approx(slope, rel=1e-10)
    assert model.gain.grad[3] == 0 and model.gain.grad[0] == 0  # the anchor's prediction gives no gradient


def test_denoised_is_ddim_of_its_paper():
    """Against x' = sqrt(a') (x - sqrt(1 - a) eps) / sqrt(a) + sqrt(1 - a') eps, with x scaled by sqrt(a)."""
    model, (x, _) = Model(0), sample()
    sigmas, guidance, prompts = [14.0, 5.0, 1.0, 0.3], 3.0, [1, 2]
    found = denoised(model, x, sigmas, torch.tensor(prompts), torch.tensor([0, 0]), guidance)
    for (first, _, b), last in zip(values(x, torch.zeros(2)), found.flatten().tolist(), strict=True):
        a = 1 / (1 + sigmas[0] ** 2)
        scaled = first * math.sqrt(a)
        for sigma, following in zip(sigmas, sigmas[1:], strict=False):
            after = 1 / (1 + following**2)
            seen = scaled / math.sqrt(a)
            bare, named = model.at(seen, sigma, 0), model.at(seen, sigma, prompts[b])
            eps = bare + guidance * (named - bare)
            clean = (scaled - math.sqrt(1 - a) * eps) / math.sqrt(a)
            scaled, a = math.sqrt(after) * clean + math.sqrt(1 - after) * eps, after
        assert last == pytest.approx(scaled / math.sqrt(a), rel=1e-9)
    assert not found.requires_grad


def test_descent():
    assert descent(4, 0) == [999, 749, 499, 249, 0]
    assert descent(4, 500) == [999, 749, 500] and descent(4, 499) == [999, 749, 499]
    assert descent(50, 999) == [999]
    for steps, last in ((0, 5), (4, 1000), (4, -1)):
        with pytest.raises(ValueError, match="cannot lead to"):
            descent(steps, last)


def adamw(start, gradient_of, steps, rate, decay, clip):
    """AdamW as its paper defines it, on a list of numbers."""
    x, m, v = list(start), [0.0] * len(start), [0.0] * len(start)
    for t in range(1, steps + 1):
        g = gradient_of(x, t)
        norm = math.sqrt(sum(part**2 for part in g))
        if clip is not None and norm > clip:
            g = [part * clip / (norm + 1e-6) for part in g]
        for i, part in enumerate(g):
            m[i], v[i] = 0.9 * m[i] + 0.1 * part, 0.999 * v[i] + 0.001 * part**2
            x[i] -= rate * decay * x[i]
            x[i] -= rate * (m[i] / (1 - 0.9**t)) / (math.sqrt(v[i] / (1 - 0.999**t)) + 1e-8)
    return x


@pytest.mark.parametrize("decay, clip", [(0.0, None), (0.1, 0.5)])
def test_fit_is_adamw(decay, clip):
    """Of sum w_i^2 d_t^2 with drawn d_t; and what the loss does not depend on stays as it is."""
    start = [1.5, -0.4, 3.0]
    weight = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    aside = torch.tensor([0.1], dtype=torch.float64, requires_grad=True)
    drawn, seen = [], []

    def loss_of(generator):
        drawn.append(float(torch.rand((), generator=generator)))
        return (weight**2).sum() * drawn[-1] ** 2

    settings = Fit(6, 0.05, decay, clip, seed=3)
    losses = fit({"weight": weight, "aside": aside}, loss_of, settings, lambda step, loss: seen.append((step, loss)))
    expected = adamw(start, lambda x, t: [2 * value * drawn[t - 1] ** 2 for value in x], 6, 0.05, decay, clip)
    assert weight.tolist() == pytest.approx(expected, rel=1e-8)
    assert float(aside) == 0.1 and len(set(drawn)) == 6
    assert [step for step, _ in seen] == [1, 2, 3, 4, 5, 6] and [loss for _, loss in seen] == list(losses)
    assert float(losses[0]) == pytest.approx(sum(v**2 for v in start) * drawn[0] ** 2, rel=1e-6)
    again = list(drawn)
    drawn.clear()
    fit({"weight": weight}, loss_of, settings)
    assert drawn == again


def test_fit_stops():
    weight = torch.ones(1, requires_grad=True)
    with pytest.raises(ValueError, match="not finite in step 1; lower the learning rate"):
        fit({"w": weight}, lambda generator: weight.sum() * math.nan, Fit(3, 0.1))
    assert float(weight) == 1
    with pytest.raises(ValueError, match="at least one step"):
        Fit(0, 0.1)
    for bad in (dict(learning_rate=0.0), dict(learning_rate=0.1, clip=0.0), dict(learning_rate=0.1, weight_decay=-1)):
        with pytest.raises(ValueError, match="must be above 0"):
            Fit(1, **bad)
