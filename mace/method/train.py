"""Training erasure LoRAs (Section 3.2): several concepts side by side, each as if it were alone.

The LoRAs of all concepts are stacked along the batch: sample c of a forward pass has concept c's. Its loss
depends on no other concept's parameters, so one backward pass gives every concept its own gradient. Random
streams, gradient clip and optimizer state are each concept's own; which concepts train together changes nothing.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor

from .lora import init_pair
from .precision import LossScale
from .schedule import Cfis, Timesteps

Stack = Mapping[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class TrainSettings:
    """How a concept's LoRA is trained: Table 10, and AdamW as the published release uses it.

    timesteps: the distribution of t (Eq. 5), or another with the same `sample`.
    """

    rank: int = 1
    steps: int = 50
    learning_rate: float = 1e-5
    weight_decay: float = 0.01
    clip: float = 1.0
    seed: int = 0
    timesteps: Timesteps = field(default_factory=Cfis)

    def __post_init__(self):
        if self.rank < 1 or self.steps < 1:
            raise ValueError("rank and steps must be at least 1")
        if not (self.learning_rate > 0 and self.clip > 0 and self.weight_decay >= 0):
            raise ValueError("learning rate and clip must be above 0, weight decay at least 0")


@dataclass(frozen=True)
class Draw:
    """What one concept trains on in one step: which image (with its mask), which prompt, t in 0..999, and the noise."""

    image: int
    prompt: int
    timestep: int
    noise: Tensor


@dataclass(frozen=True)
class Example:
    """A concept to train: its name (it seeds the streams), and how many images and prompts it has."""

    name: str
    images: int
    prompts: int
    latent_shape: tuple[int, ...]


def stream(seed: int, name: str, purpose: str) -> torch.Generator:
    """The concept's own random stream for one purpose; on the CPU, so that it is the same on every device."""
    digest = hashlib.sha256(f"{seed}\0{name}\0{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))


def draws(example: Example, settings: TrainSettings) -> Iterator[Draw]:
    """The concept's draws, one a step."""
    generator = stream(settings.seed, example.name, "draws")
    for _ in range(settings.steps):
        image = int(torch.randint(example.images, (), generator=generator))
        prompt = int(torch.randint(example.prompts, (), generator=generator))
        timestep = int(settings.timesteps.sample(1, generator))
        yield Draw(image, prompt, timestep, torch.randn(example.latent_shape, generator=generator))


def initial(
    examples: Sequence[Example],
    shapes: Mapping[str, tuple[int, int]],
    settings: TrainSettings,
    directions: Sequence[Tensor] | None = None,
    **options,
) -> dict[str, tuple[Tensor, Tensor]]:
    """Stacked LoRAs before training: per projection B = 0 [C, d_out, r] and A ~ N(0, 1/r^2) [C, r, d].

    shapes: (d_out, d) by projection. options: dtype and device of the parameters. Every concept draws its A from its
    own stream, projection by projection in the order of `shapes`. directions: a concept's A [r, d] for all projections
    in place of the drawn ones (see mace.method.focus); A is then not trained.
    """
    generators = [stream(settings.seed, example.name, "init") for example in examples]
    stacked = {}
    for key, (d_out, d) in shapes.items():
        pairs = [init_pair(d_out, d, settings.rank, generator) for generator in generators]
        ups, downs = (torch.stack(side).to(**options) for side in zip(*pairs, strict=True))
        if directions is not None:
            downs = torch.stack(list(directions)).to(**options)
        stacked[key] = (ups.requires_grad_(True), downs.requires_grad_(directions is None))
    return stacked


@dataclass(frozen=True)
class TrainState:
    """Where one concept's training stands after some steps, on the CPU: from here it goes on as if it had not stopped.

    losses: [steps so far].  pairs: (B, A) by projection.  moments: AdamW's running means of the gradient and of its
    square, for B and for A; None where a parameter had no gradient yet.
    """

    losses: Tensor
    pairs: Mapping[str, tuple[Tensor, Tensor]]
    moments: Mapping[str, tuple[tuple[Tensor, Tensor] | None, tuple[Tensor, Tensor] | None]]

    @property
    def step(self) -> int:
        """Steps made."""
        return len(self.losses)


def states_of(stacked: Stack, optimizer: torch.optim.AdamW, history: Sequence[Tensor]) -> list[TrainState]:
    """The state of each concept of a stack. history: losses [C] of each step."""

    def own(parameter: Tensor, c: int) -> tuple[Tensor, Tensor] | None:
        kept = optimizer.state.get(parameter)
        return (kept["exp_avg"][c].cpu().clone(), kept["exp_avg_sq"][c].cpu().clone()) if kept else None

    losses = torch.stack(list(history))
    return [
        TrainState(
            losses[:, c].clone(),
            {key: tuple(p[c].detach().cpu().clone() for p in pair) for key, pair in stacked.items()},
            {key: tuple(own(p, c) for p in pair) for key, pair in stacked.items()},
        )
        for c in range(losses.shape[1])
    ]


def _resume(stacked: Stack, optimizer: torch.optim.AdamW, states: Sequence[TrainState]) -> None:
    """Put the states, all of one step, into fresh parameters and their optimizer."""
    with torch.no_grad():
        for key, pair in stacked.items():
            for side, parameter in enumerate(pair):
                parameter.copy_(torch.stack([state.pairs[key][side] for state in states]))
                moments = [state.moments[key][side] for state in states]
                if parameter.requires_grad and all(moments):
                    mean, square = (torch.stack(part).to(parameter) for part in zip(*moments, strict=True))
                    step = torch.tensor(float(states[0].step))
                    optimizer.state[parameter] = {"step": step, "exp_avg": mean, "exp_avg_sq": square}


def gradients(stacked: Stack) -> list[Tensor]:
    """The gradients [C, ...] of the parameters that have one."""
    return [p.grad for pair in stacked.values() for p in pair if p.grad is not None]


def clip_per_concept(stacked: Stack, limit: float) -> Tensor:
    """Scale each concept's gradient to a norm of at most `limit` over all its parameters; returns the norms, [C]."""
    found = gradients(stacked)
    norms = torch.stack([g.flatten(1).square().sum(dim=1) for g in found]).sum(dim=0).sqrt()
    # As torch's own clip: the small term keeps a gradient of 0 at 0.
    scale = (limit / (norms + 1e-6)).clamp_max(1.0)
    for gradient in found:
        gradient.mul_(scale.view(-1, *[1] * (gradient.dim() - 1)))
    return norms


def train(
    examples: Sequence[Example],
    shapes: Mapping[str, tuple[int, int]],
    losses_of: Callable[[list[Draw], Stack], Tensor],
    settings: TrainSettings,
    report: Callable[[int, Tensor], None] = lambda step, losses: None,
    directions: Sequence[Tensor] | None = None,
    states: Sequence[TrainState] | None = None,
    keep: Callable[[list[TrainState]], None] = lambda states: None,
    keep_every: int = 0,
    computes_in: torch.dtype = torch.float32,
    **options,
) -> tuple[list[dict[str, tuple[Tensor, Tensor]]], Tensor]:
    """Train one LoRA a concept; returns (a LoRA a concept: (B, A) by projection; losses [steps, C]).

    losses_of: (one draw a concept, the stacked LoRAs) -> Eq. 3's loss of each concept [C], differentiable in
    the LoRAs, sample c in those of concept c alone. report(step, losses [C]) is called after each step and may
    raise to stop: nothing but the parameters made here was changed. directions: see `initial`. states: of all
    concepts, of one and the same step, to go on from.  keep(states) is called every `keep_every` steps (0: never) but
    the last, and when training is stopped, after the last too, but not inside the optimizer's step.  computes_in: the
    model's dtype (see mace.method.precision).  options: dtype and device of the parameters. Raises ValueError when a
    loss or a gradient is not finite.
    """
    stacked = initial(examples, shapes, settings, directions, **options)
    parameters = [p for pair in stacked.values() for p in pair if p.requires_grad]
    # Elementwise, so one optimizer over the stack is one optimizer a concept.
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    history: list[Tensor] = []
    if states:
        _resume(stacked, optimizer, states)
        history = list(torch.stack([state.losses for state in states], dim=1))
    scale = LossScale(len(examples), computes_in, parameters[0].device)
    drawn_by_step = zip(*(draws(example, settings) for example in examples), strict=True)
    first, is_whole = len(history) + 1, True
    try:
        for step, drawn in enumerate(islice(drawn_by_step, first - 1, None), start=first):
            losses = _backward(examples, losses_of, list(drawn), stacked, optimizer, scale, settings.clip, step)
            is_whole = False
            optimizer.step()
            history.append(losses.detach().cpu())
            is_whole = True
            report(step, history[-1])
            if keep_every and step % keep_every == 0 and step < settings.steps:
                keep(states_of(stacked, optimizer, history))
    except ValueError:
        raise
    except BaseException:
        # Between two steps, or before the parameters of one were touched: an optimizer that failed has moved some.
        if keep_every and is_whole and first <= len(history):
            keep(states_of(stacked, optimizer, history))
        raise
    trained = [
        {key: (up[c].detach().clone(), down[c].detach().clone()) for key, (up, down) in stacked.items()}
        for c in range(len(examples))
    ]
    return trained, torch.stack(history)


def _backward(examples, losses_of, drawn, stacked, optimizer, scale: LossScale, clip: float, step: int) -> Tensor:
    """One step's losses [C], with clipped gradients in the parameters. See `train` for the rest."""
    while True:
        losses = losses_of(drawn, stacked)
        if not torch.isfinite(losses).all():
            raise ValueError(_not_finite("loss", examples, losses, step))
        optimizer.zero_grad(set_to_none=True)
        scale.scaled(losses).backward()
        scale.unscale(gradients(stacked))
        norms = clip_per_concept(stacked, clip)
        try:
            if scale.fits(norms):
                return losses
        except ValueError:
            raise ValueError(_not_finite("gradient", examples, norms, step)) from None


def _not_finite(what: str, examples: Sequence[Example], values: Tensor, step: int) -> str:
    names = ", ".join(e.name for e, value in zip(examples, values, strict=True) if not torch.isfinite(value))
    return f"the {what} of {names} is not finite in step {step}; lower the learning rate"
