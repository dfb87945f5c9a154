"""Training erasure LoRAs on the host's model: what each concept trains on, groups that fit in memory, the store."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from comfy import model_management
from torch import Tensor

from ..mace.attention import SQUARED, spread_over
from ..mace.images import ConceptImages
from ..mace.lora_set import ErasureLora
from ..mace.schedule import Cfis, Timesteps
from ..mace.settings import LoraRow, auto_lora
from ..mace.tokens import fill
from ..mace.train import Example, Stack, TrainSettings, train
from .content import content_sha256, training_key
from .forward import Batch, extra_inputs, losses, noisy, trainable_copy
from .store import ContentStore
from .text import TextEncoder, chunks
from .unet import cross_attention_keys

# A LoRA of rank 1 takes 0.2 MB in SD1.x and 1.6 MB in SDXL.
LORA_STORE_BYTES = 512 << 20
MOST_SIDE_BY_SIDE = 32
# Backward keeps the activations that the host's estimate for sampling counts once; with recomputing, fewer.
TRAINING_MEMORY, RECOMPUTING_MEMORY = 6.0, 4.0

_store = ContentStore(LORA_STORE_BYTES)


@dataclass(frozen=True)
class TrainOptions:
    """How erasure LoRAs are trained; None stands for Table 10's value of each concept's type.

    form: one of mace.attention.LOSSES.  end_of_text: whether Eq. 3's tokens include end-of-text and padding.
    projections: "both", "keys" or "values".  side_by_side: concepts in one forward pass, None for what memory holds.
    save_memory: recompute attention in the backward pass.
    """

    rank: int | None = None
    steps: int | None = None
    learning_rate: float | None = None
    form: str = SQUARED
    end_of_text: bool = False
    timesteps: Timesteps = Cfis()
    projections: str = "both"
    seed: int = 0
    side_by_side: int | None = None
    save_memory: bool = False
    by_type: Callable[[str], LoraRow] = auto_lora

    def settings(self, type: str) -> TrainSettings:
        """The settings of a concept of this type."""
        usual = self.by_type(type)
        return TrainSettings(
            rank=self.rank or usual.rank,
            steps=self.steps or usual.steps,
            learning_rate=self.learning_rate or usual.learning_rate,
            seed=self.seed,
            timesteps=self.timesteps,
        )

    def record(self, type: str, images: int) -> dict:
        """The settings as a set's file and a checkpoint's provenance state them."""
        chosen = self.settings(type)
        timesteps = asdict(chosen.timesteps)
        return {
            "rank": chosen.rank,
            "steps": chosen.steps,
            "learning_rate": chosen.learning_rate,
            "weight_decay": chosen.weight_decay,
            "clip": chosen.clip,
            "seed": chosen.seed,
            "loss": self.form,
            "end_of_text": self.end_of_text,
            "timesteps": f"CFIS {timesteps}" if timesteps else "uniform",
            "projections": self.projections,
            "images": images,
        }


@dataclass(frozen=True)
class Material:
    """What one concept trains on, on the CPU. latents [n, ch, h, w] and masks [n, H, W] of its images; contexts
    [P, N, d], tokens [P, N] (1 in S of Eq. 3) and pooled [P, c] (or None) of its prompts."""

    latents: Tensor
    masks: Tensor
    contexts: Tensor
    tokens: Tensor
    pooled: Tensor | None

    def clone(self) -> "Material":
        """Copies that autograd can take part in: what the host gives are inference tensors."""
        return Material(*(None if t is None else t.to("cpu", torch.float32, copy=True) for t in vars(self).values()))


def material(encoder: TextEncoder, images: ConceptImages, masks: Tensor, end_of_text: bool, pooled: bool) -> Material:
    """Encode a concept's prompts, its aliases' too, and find its tokens in them."""
    concept = images.concept
    filled = [(template, phrase) for phrase in concept.phrases for template in concept.prompts]
    prompts = [fill(template, phrase) for template, phrase in filled]
    tokens = torch.zeros(len(prompts), encoder.window)
    for row, (template, phrase) in enumerate(filled):
        positions = encoder.pair(template, phrase, concept.mapping).phrase
        end = encoder.length(prompts[row]) + 1
        tokens[row, list(spread_over(positions, end, encoder.window, end_of_text))] = 1
    contexts = torch.cat([encoder.encode(part).cpu() for part in chunks(prompts)])
    return Material(images.latents, masks, contexts, tokens, encoder.pooled(prompts).cpu() if pooled else None)


def loss_function(copy, examples: Sequence[Example], materials: Sequence[Material], options: TrainOptions):
    """Eq. 3's losses of one draw a concept, as `mace.train.train` asks for them."""
    device = copy.load_device

    def losses_of(drawn, stacked: Stack) -> Tensor:
        def gather(name: str, place: str) -> Tensor:
            rows = [getattr(m, name)[getattr(d, place)] for m, d in zip(materials, drawn, strict=True)]
            return torch.stack(rows).to(device)

        latents = gather("latents", "image")
        noise = torch.stack([d.noise for d in drawn]).to(device)
        timesteps = torch.tensor([d.timestep for d in drawn])
        x, sigmas = noisy(copy, latents, noise, timesteps)
        pooled = None if materials[0].pooled is None else gather("pooled", "prompt")
        batch = Batch(
            x,
            sigmas,
            gather("contexts", "prompt"),
            gather("tokens", "prompt"),
            gather("masks", "image"),
            extra_inputs(copy, latents, pooled),
        )
        return losses(copy, batch, stacked, options.form, options.save_memory)

    return losses_of


def how_many(copy, latent_shape: Sequence[int], options: TrainOptions) -> int:
    """Concepts to train side by side: as asked for, or as many as the free memory is likely to hold."""
    if options.side_by_side:
        return options.side_by_side
    factor = RECOMPUTING_MEMORY if options.save_memory else TRAINING_MEMORY
    each = factor * copy.model.memory_required([1, *latent_shape])
    free = model_management.get_free_memory(copy.load_device)
    return int(min(max(free * 0.8 / max(each, 1), 1), MOST_SIDE_BY_SIDE))


class Trainer:
    """Trains the LoRAs of concepts that the store does not hold.

    model: the refined MODEL.  refined_on: its refinement's digest.  report(names, step, losses [C]) after each step.
    """

    def __init__(self, model, clip, options: TrainOptions, refined_on: str, report: Callable):
        self.model, self.options, self.refined_on, self.report = model, options, refined_on, report
        self.encoder = TextEncoder(clip)
        self.encoder.check_width(model)
        self.pooled = self.encoder.has_pooled(model)
        self.keys = cross_attention_keys(model, options.projections)
        state = model.model.state_dict()
        self.shapes = {key: tuple(state[key].shape) for key in self.keys}
        self._base = training_key(model)

    def key(self, images: ConceptImages, masks: Tensor) -> str:
        """What the concept's LoRA depends on (see `content.training_key`), not on the other concepts."""
        concept = images.concept
        record = self.options.record(concept.type, len(images))
        text = self.encoder.content(*concept.phrases, concept.mapping)
        return content_sha256(self._base, text, concept, concept.prompts, images.latents, masks, record)

    def known(self, key: str) -> ErasureLora | None:
        """The LoRA trained before under this key."""
        return _store.get(key)

    def run(self, work: Sequence[tuple[str, ConceptImages, Tensor]]) -> dict[str, ErasureLora]:
        """LoRAs by key of (key, images, masks). Each group goes into the store when it is done.

        Raises the host's interrupt between two steps, and its out-of-memory error with advice when one concept alone
        does not fit. Nothing of the host is changed either way.
        """
        done: dict[str, ErasureLora] = {}
        if not work:
            return done
        with trainable_copy(self.model) as copy:
            groups: dict[TrainSettings, list] = {}
            for item in work:
                groups.setdefault(self.options.settings(item[1].concept.type), []).append(item)
            size = how_many(copy, work[0][1].latents.shape[1:], self.options)
            queue = [
                (settings, items[start : start + size])
                for settings, items in groups.items()
                for start in range(0, len(items), size)
            ]
            while queue:
                settings, items = queue.pop(0)
                trained = self._group(copy, settings, items)
                if trained is None:
                    half = len(items) // 2
                    queue[:0] = [(settings, items[:half]), (settings, items[half:])]
                    continue
                for (key, _, _), lora in zip(items, trained, strict=True):
                    size_of = sum(t.numel() * t.element_size() for pair in lora.lora.values() for t in pair)
                    _store.put(key, lora, size_of)
                    done[key] = lora
        return done

    def _group(self, copy, settings: TrainSettings, items: Sequence) -> list[ErasureLora] | None:
        """LoRAs of concepts side by side; None when they did not fit in memory and fewer may."""
        names = [images.concept.target for _, images, _ in items]
        try:
            return self._train(copy, settings, items, names)
        except Exception as error:
            model_management.raise_non_oom(error)
            model_management.soft_empty_cache()
            if len(items) == 1:
                raise RuntimeError(
                    f"out of memory while training {names[0]!r} alone: turn on save_memory, or use smaller images"
                ) from error
        return None

    def _train(self, copy, settings: TrainSettings, items: Sequence, names: list[str]) -> list[ErasureLora]:
        with torch.inference_mode():
            encoded = [
                material(self.encoder, images, masks, self.options.end_of_text, self.pooled)
                for _, images, masks in items
            ]
        materials = [entry.clone() for entry in encoded]
        examples = [
            Example(name, len(m.latents), len(m.contexts), tuple(m.latents.shape[1:]))
            for name, m in zip(names, materials, strict=True)
        ]
        # Encoding may have moved the copy off the device.
        model_management.load_models_gpu([copy], force_full_load=True)

        def report(step: int, values: Tensor) -> None:
            model_management.throw_exception_if_processing_interrupted()
            self.report(names, step, values)

        trained, history = train(
            examples,
            self.shapes,
            loss_function(copy, examples, materials, self.options),
            settings,
            report,
            dtype=torch.float32,
            device=copy.load_device,
        )
        return [
            ErasureLora(
                images.concept,
                {key: (up.cpu(), down.cpu()) for key, (up, down) in lora.items()},
                history[:, place].clone(),
                self.options.record(images.concept.type, len(images)),
                None,
                self.refined_on,
            )
            for place, ((_, images, _), lora) in enumerate(zip(items, trained, strict=True))
        ]
