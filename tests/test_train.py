"""Training several concepts side by side: the same as each alone, step by step as AdamW is defined."""

import math

import pytest
import torch

from mace.method.loss import masked_loss, token_attention
from mace.method.schedule import Cfis
from mace.method.train import Example, TrainSettings, clip_per_concept, draws, initial, train

D, HEADS, PIXELS, TOKENS = 6, 2, 4, 5
SHAPES = {"a.to_k": (8, D), "b.to_k": (4, D)}
EXAMPLES = [Example(name, images=3, prompts=4, latent_shape=(PIXELS,)) for name in ("dog", "hot dog", "Monet")]
FLOAT64 = dict(dtype=torch.float64)


class Network:
    """A frozen network of two cross-attention layers, with images and prompts for each concept."""

    def __init__(self):
        generator = torch.Generator().manual_seed(3)

        def random(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.weights = {key: random(*shape) for key, shape in SHAPES.items()}
        self.images = {e.name: random(e.images, PIXELS, D) for e in EXAMPLES}
        self.prompts = {e.name: random(e.prompts, TOKENS, D) for e in EXAMPLES}
        self.queries = {key: random(shape[0], D) for key, shape in SHAPES.items()}
        self.masks = {e.name: (random(e.images, PIXELS) > 0).double() for e in EXAMPLES}
        self.tokens = torch.tensor([0.0, 1.0, 1.0, 0.0, 0.0], dtype=torch.float64)

    def losses_of(self, examples, scale=None):
        def losses(drawn, stacked):
            pairs = list(zip(examples, drawn, strict=True))
            noise = (
                torch.stack([d.noise for d in drawn])[..., None]
                * (1 + torch.tensor([d.timestep for d in drawn]))[:, None, None].double().sqrt()
                * 0.01
            )
            images = torch.stack([self.images[e.name][d.image] for e, d in pairs]) + noise
            prompts = torch.stack([self.prompts[e.name][d.prompt] for e, d in pairs])
            masks = torch.stack([self.masks[e.name][d.image] for e, d in pairs])
            total = torch.zeros(len(examples), dtype=torch.float64)
            for key, (ups, downs) in stacked.items():
                keys = prompts @ self.weights[key].T + (prompts @ downs.mT) @ ups.mT
                attention = token_attention(images @ self.queries[key].T, keys, HEADS)
                total = total + masked_loss(attention, self.tokens.expand(len(examples), -1), masks)
            return total if scale is None else total * scale

        return losses


@pytest.mark.parametrize("rank", [1, 3])
def test_together_is_the_same_as_alone(rank):
    network, settings = Network(), TrainSettings(rank=rank, steps=12, learning_rate=3e-2, clip=0.05)
    together, losses = train(EXAMPLES, SHAPES, network.losses_of(EXAMPLES), settings, **FLOAT64)
    assert losses.shape == (12, 3)
    for c, example in enumerate(EXAMPLES):
        (alone,), own = train([example], SHAPES, network.losses_of([example]), settings, **FLOAT64)
        torch.testing.assert_close(losses[:, c], own[:, 0], rtol=1e-10, atol=0)
        for key in SHAPES:
            for found, expected in zip(together[c][key], alone[key], strict=True):
                torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-13)


def test_order_and_company_do_not_matter():
    network, settings = Network(), TrainSettings(steps=5, learning_rate=1e-2)
    forward, _ = train(EXAMPLES, SHAPES, network.losses_of(EXAMPLES), settings, **FLOAT64)
    order = EXAMPLES[::-1][:2]
    backward, _ = train(order, SHAPES, network.losses_of(order), settings, **FLOAT64)
    torch.testing.assert_close(backward[0]["a.to_k"][1], forward[2]["a.to_k"][1], rtol=1e-9, atol=1e-13)


def test_another_concepts_gradient_does_not_touch_the_clip():
    """One concept's loss is scaled up a million times: the others train as before."""
    network, settings = Network(), TrainSettings(steps=4, learning_rate=1e-2, clip=0.01)
    scale = torch.tensor([1e6, 1.0, 1.0], dtype=torch.float64)
    plain, _ = train(EXAMPLES, SHAPES, network.losses_of(EXAMPLES), settings, **FLOAT64)
    scaled, _ = train(EXAMPLES, SHAPES, network.losses_of(EXAMPLES, scale), settings, **FLOAT64)
    for c in (1, 2):
        torch.testing.assert_close(scaled[c]["a.to_k"][0], plain[c]["a.to_k"][0], rtol=1e-10, atol=0)


def test_steps_are_adamws():
    """The update written out: clip to the limit, decoupled decay, bias-corrected moments."""
    network = Network()
    settings = TrainSettings(steps=3, learning_rate=1e-2, clip=0.02, weight_decay=0.1)
    example = EXAMPLES[:1]
    stacked = {
        k: tuple(p.detach().clone() for p in v) for k, v in initial(example, SHAPES, settings, **FLOAT64).items()
    }
    first, second = ({k: [torch.zeros_like(p) for p in v] for k, v in stacked.items()} for _ in range(2))
    for step, drawn in enumerate(draws(example[0], settings), start=1):
        tried = {k: tuple(p.clone().requires_grad_(True) for p in v) for k, v in stacked.items()}
        network.losses_of(example)([drawn], tried).sum().backward()
        norm = math.sqrt(sum(float(p.grad.square().sum()) for v in tried.values() for p in v))
        assert norm > settings.clip
        for k, pair in tried.items():
            updated = []
            for i, p in enumerate(pair):
                g = p.grad * (settings.clip / (norm + 1e-6))
                first[k][i] = 0.9 * first[k][i] + 0.1 * g
                second[k][i] = 0.999 * second[k][i] + 0.001 * g**2
                m, v = first[k][i] / (1 - 0.9**step), second[k][i] / (1 - 0.999**step)
                value = stacked[k][i] * (1 - settings.learning_rate * settings.weight_decay)
                updated.append(value - settings.learning_rate * m / (v.sqrt() + 1e-8))
            stacked[k] = tuple(updated)
    (trained,), _ = train(example, SHAPES, network.losses_of(example), settings, **FLOAT64)
    for key in SHAPES:
        for found, expected in zip(trained[key], stacked[key], strict=True):
            torch.testing.assert_close(found, expected[0], rtol=1e-9, atol=1e-13)


def test_training_lowers_the_loss():
    """On the same draw each step, so that the losses can be compared."""
    network, settings = Network(), TrainSettings(steps=60, learning_rate=2e-2)
    fixed = [next(draws(e, settings)) for e in EXAMPLES]
    losses_of = network.losses_of(EXAMPLES)
    _, losses = train(EXAMPLES, SHAPES, lambda _, stacked: losses_of(fixed, stacked), settings, **FLOAT64)
    assert (losses[0] > 0).sum() >= 2
    assert (losses[-1] <= 0.7 * losses[0]).all()


def test_start_is_the_refined_model():
    stacked = initial(EXAMPLES, SHAPES, TrainSettings(rank=4), **FLOAT64)
    for key, (up, down) in stacked.items():
        assert torch.equal(up, torch.zeros(3, SHAPES[key][0], 4, dtype=torch.float64))
        assert not torch.equal(down[0], down[1])
    many = initial(EXAMPLES[:1], {"k": (1, 20000)}, TrainSettings(rank=4), **FLOAT64)["k"][1]
    assert float(many.detach().std()) == pytest.approx(1 / 4, rel=0.02)


def test_streams_belong_to_the_concept_and_the_seed():
    settings = TrainSettings(steps=50, timesteps=Cfis())
    a, again = list(draws(EXAMPLES[0], settings)), list(draws(EXAMPLES[0], settings))
    b = list(draws(EXAMPLES[1], settings))
    c = list(draws(EXAMPLES[0], TrainSettings(steps=50, seed=1)))
    same = [(x.image, x.prompt, x.timestep) for x in a]
    assert same == [(x.image, x.prompt, x.timestep) for x in again]
    assert same != [(x.image, x.prompt, x.timestep) for x in b]
    assert same != [(x.image, x.prompt, x.timestep) for x in c]
    assert {x.image for x in a} == {0, 1, 2} and {x.prompt for x in a} == {0, 1, 2, 3}
    assert all(0 <= x.timestep < 1000 for x in a)
    # A longer run starts with the shorter one's draws.
    longer = list(draws(EXAMPLES[0], TrainSettings(steps=80)))
    assert torch.equal(longer[49].noise, a[49].noise)


def test_clip_leaves_small_gradients_alone():
    stacked = initial(EXAMPLES, SHAPES, TrainSettings(), **FLOAT64)
    for up, down in stacked.values():
        up.grad, down.grad = torch.full_like(up, 1e-4), torch.zeros_like(down)
    stacked["a.to_k"][0].grad[1] = 5.0
    norms = clip_per_concept(stacked, 1.0)
    assert norms[1] > 1 and norms[0] < 1
    assert float(stacked["a.to_k"][0].grad[0, 0, 0]) == pytest.approx(1e-4)
    after = sum(float(p.grad[1].square().sum()) for pair in stacked.values() for p in pair)
    assert math.sqrt(after) == pytest.approx(1.0, rel=1e-5)


def test_a_report_may_stop_the_run():
    network, seen = Network(), []

    def report(step, losses):
        seen.append((step, losses.shape))
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(EXAMPLES, SHAPES, network.losses_of(EXAMPLES), TrainSettings(), report, **FLOAT64)
    assert seen == [(1, (3,)), (2, (3,)), (3, (3,))]


def test_a_step_that_the_optimizer_did_not_finish_is_not_kept(monkeypatch):
    """Memory runs out when a part of the parameters has been moved: the state would be of neither step."""
    kept, calls, step = [], [], torch.optim.AdamW.step

    def torn(self):
        calls.append(1)
        if len(calls) == 4:
            for parameter in self.param_groups[0]["params"][2:]:
                parameter.grad = None
            step(self)
            raise torch.OutOfMemoryError("no memory")
        return step(self)

    monkeypatch.setattr(torch.optim.AdamW, "step", torn)
    with pytest.raises(torch.OutOfMemoryError):
        train(
            EXAMPLES,
            SHAPES,
            Network().losses_of(EXAMPLES),
            TrainSettings(steps=6),
            keep=kept.append,
            keep_every=2,
            **FLOAT64,
        )
    assert [states[0].step for states in kept] == [2]


def test_errors():
    with pytest.raises(ValueError, match="rank and steps"):
        TrainSettings(rank=0)
    with pytest.raises(ValueError, match="learning rate"):
        TrainSettings(learning_rate=0)
    with pytest.raises(ValueError, match="hot dog is not finite in step 1"):
        train(
            EXAMPLES,
            SHAPES,
            lambda drawn, stacked: torch.tensor([1.0, float("nan"), 1.0], requires_grad=True),
            TrainSettings(),
        )
