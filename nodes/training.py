"""Training erasure LoRAs on the host's model: groups that fit in memory, and the store of what is trained."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property

import torch
from comfy import model_management
from torch import Tensor

from ..mace.attention import SQUARED
from ..mace.images import ConceptImages
from ..mace.lora_set import ErasureLora
from ..mace.prior import PROBE_TOLERANCE, probe_distance
from ..mace.refine import Refinement
from ..mace.schedule import Cfis, Timesteps
from ..mace.settings import LoraRow, auto_lora
from ..mace.train import Example, TrainSettings, train
from .content import base_of, content_sha256, refinement_digest, training_key
from .forward import trainable_copy
from .material import loss_function, material
from .store import ContentStore
from .text import TextEncoder
from .unet import cross_attention_keys, reading

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
    save_memory: recompute attention in the backward pass.  focus: whether A is that of mace.focus.
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
    focus: bool = False
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
            "focus": self.focus,
            "images": images,
        }


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

    model: the refined MODEL.  refinement: its Refinement, or None.  report(names, step, losses [C]) after each step.
    Raises ValueError for another text encoder than the refinement's.
    """

    def __init__(self, model, clip, options: TrainOptions, refinement: Refinement | None, report: Callable):
        self.model, self.options, self.refinement, self.report = model, options, refinement, report
        self.refined_on = refinement_digest(refinement)
        self.encoder = TextEncoder(clip)
        self.encoder.check_width(model)
        self.pooled = self.encoder.has_pooled(model)
        self.keys = cross_attention_keys(model, options.projections)
        state = model.model.state_dict()
        self.shapes = {key: tuple(state[key].shape) for key in self.keys}
        self._base = training_key(model)
        # Also when the distance is not a number.
        if refinement is not None and not (
            probe_distance(self.encoder.fingerprint, refinement.fingerprint) <= PROBE_TOLERANCE
        ):
            raise ValueError(
                "this CLIP is not the one CFR Refine has, or its clip skip is another: connect the same CLIP"
            )

    @property
    def can_focus(self) -> bool:
        """Whether there is a prior to focus against."""
        prior = self.refinement.prior if self.refinement else None
        return prior is not None and prior.mean is not None

    @cached_property
    def metric(self) -> Tensor | None:
        """R of the refinement's mu, that of focus' floor too."""
        return reading(base_of(self.model), self.refinement.weights.metric)

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
        focus = None
        if self.options.focus and self.can_focus:
            caption, device = self.refinement.prior.mean.clone(), self.model.load_device
            focus = [entry.directions(caption, settings.rank, device, self.metric) for entry in materials]
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
            loss_function(copy, materials, self.options.form, self.options.save_memory),
            settings,
            report,
            focus,
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
