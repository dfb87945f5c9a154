"""Training erasure LoRAs (Section 3.2): several concepts side by side, each as if it were alone.

The LoRAs of all concepts are stacked along the batch: sample c of a forward pass has concept c's. Its loss
depends on no other concept's parameters, so one backward pass gives every concept its own gradient. Random
streams, gradient clip and optimizer state are each concept's own; which concepts train together changes nothing.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .lora import init_pair
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
    in place of the drawn ones (see mace.focus); A is then not trained.
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


def clip_per_concept(stacked: Stack, limit: float) -> Tensor:
    """Scale each concept's gradient to a norm of at most `limit` over all its parameters; returns the norms, [C]."""
    gradients = [p.grad for pair in stacked.values() for p in pair if p.grad is not None]
    norms = torch.stack([g.flatten(1).square().sum(dim=1) for g in gradients]).sum(dim=0).sqrt()
    # As torch's own clip: the small term keeps a gradient of 0 at 0.
    scale = (limit / (norms + 1e-6)).clamp_max(1.0)
    for gradient in gradients:
        gradient.mul_(scale.view(-1, *[1] * (gradient.dim() - 1)))
    return norms


def train(
    examples: Sequence[Example],
    shapes: Mapping[str, tuple[int, int]],
    losses_of: Callable[[list[Draw], Stack], Tensor],
    settings: TrainSettings,
    report: Callable[[int, Tensor], None] = lambda step, losses: None,
    directions: Sequence[Tensor] | None = None,
    **options,
) -> tuple[list[dict[str, tuple[Tensor, Tensor]]], Tensor]:
    """Train one LoRA a concept; returns (a LoRA a concept: (B, A) by projection; losses [steps, C]).

    losses_of: (one draw a concept, the stacked LoRAs) -> Eq. 3's loss of each concept [C], differentiable in
    the LoRAs, sample c in those of concept c alone. report(step, losses [C]) is called after each step and may
    raise to stop: nothing but the parameters made here was changed. directions: see `initial`. options: dtype and
    device of the parameters. Raises ValueError when a loss is not finite.
    """
    stacked = initial(examples, shapes, settings, directions, **options)
    parameters = [p for pair in stacked.values() for p in pair if p.requires_grad]
    # Elementwise, so one optimizer over the stack is one optimizer a concept.
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    history = []
    for step, drawn in enumerate(zip(*(draws(example, settings) for example in examples), strict=True), start=1):
        losses = losses_of(list(drawn), stacked)
        if not torch.isfinite(losses).all():
            names = [e.name for e, loss in zip(examples, losses, strict=True) if not torch.isfinite(loss)]
            raise ValueError(f"the loss of {', '.join(names)} is not finite in step {step}; lower the learning rate")
        optimizer.zero_grad(set_to_none=True)
        losses.sum().backward()
        clip_per_concept(stacked, settings.clip)
        optimizer.step()
        history.append(losses.detach().cpu())
        report(step, history[-1])
    trained = [
        {key: (up[c].detach().clone(), down[c].detach().clone()) for key, (up, down) in stacked.items()}
        for c in range(len(examples))
    ]
    return trained, torch.stack(history)
