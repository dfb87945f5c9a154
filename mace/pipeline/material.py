"""What one concept trains on: its images and masks, its prompts encoded once, and Eq. 3's loss of a draw of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..concepts.images import ConceptImages
from ..masks.kept import as_floats
from ..method.focus import directions, selected_moment
from ..method.loss import spread_over
from ..method.tokens import fill
from ..method.train import Stack
from .attention_loss import Batch, losses
from .batches import chunks
from .host import Denoiser, Embeddings


@dataclass(frozen=True)
class Material:
    """What one concept trains on, on the CPU. latents [n, ch, h, w] and masks [n, H, W] of its images; contexts
    [P, N, d], tokens [P, N] (1 in S of Eq. 3), phrase [P, N] (1 at the concept's own tokens) and pooled [P, c] (or
    None) of its prompts."""

    latents: Tensor
    masks: Tensor
    contexts: Tensor
    tokens: Tensor
    phrase: Tensor
    pooled: Tensor | None

    def clone(self) -> "Material":
        """Copies that autograd can take part in: what a host gives may be inference tensors."""
        return Material(*(None if t is None else t.to("cpu", torch.float32, copy=True) for t in vars(self).values()))

    def directions(self, caption: Tensor, rank: int, device: torch.device, metric: Tensor | None) -> Tensor:
        """A [rank, d] of mace.method.focus for these prompts. caption: the prior's mean moment, packed."""
        end = self.tokens - self.phrase
        moment, weight = selected_moment(self.contexts, self.phrase, end if end.any() else None)
        return directions(moment, weight, caption, rank, device, metric)


def material(encoder: Embeddings, images: ConceptImages, masks: Tensor, end_of_text: bool, pooled: bool) -> Material:
    """Encode a concept's prompts, its aliases' too, and find its tokens in them. masks: as they are kept."""
    concept = images.concept
    prompts = [fill(template, phrase) for template, phrase in concept.readings]
    own, tokens = (torch.zeros(len(prompts), encoder.window) for _ in range(2))
    for row, (template, phrase) in enumerate(concept.readings):
        positions = encoder.pair(template, phrase, concept.mapping).phrase
        end = encoder.length(prompts[row]) + 1
        own[row, list(positions)] = 1
        tokens[row, list(spread_over(positions, end, encoder.window, end_of_text))] = 1
    contexts = torch.cat([encoder.encoded(part).cpu() for part in chunks(prompts)])
    pooled_text = encoder.pooled(prompts).cpu() if pooled else None
    return Material(images.latents, as_floats(masks), contexts, tokens, own, pooled_text)


def loss_function(model: Denoiser, materials: Sequence[Material], form: str):
    """Eq. 3's losses of one draw a concept, as `mace.method.train.train` asks for them. form: see `losses`."""
    device = model.device

    def losses_of(drawn, stacked: Stack) -> Tensor:
        def gather(name: str, place: str) -> Tensor:
            rows = [getattr(m, name)[getattr(d, place)] for m, d in zip(materials, drawn, strict=True)]
            return torch.stack(rows)

        noise = torch.stack([d.noise for d in drawn]).to(device)
        x, sigmas = model.noisy(gather("latents", "image").to(device), noise, [d.timestep for d in drawn])
        batch = Batch(
            x,
            sigmas,
            gather("contexts", "prompt").to(device),
            gather("tokens", "prompt").to(device),
            gather("masks", "image"),
            None if materials[0].pooled is None else gather("pooled", "prompt").to(device),
        )
        return losses(model, batch, stacked, form)

    return losses_of
