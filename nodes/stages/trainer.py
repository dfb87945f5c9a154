"""Training erasure LoRAs on the host's model: groups that fit in memory, and the store of what is trained."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from comfy import model_management
from torch import Tensor

from ...mace.concepts.images import ConceptImages
from ...mace.formats.lora_set import ErasureLora, refinement_digest
from ...mace.masks.kept import as_floats
from ...mace.method.prior import PROBE_TOLERANCE, probe_distance
from ...mace.method.refine import Refinement
from ...mace.method.tokens import fill
from ...mace.method.train import Example, TrainSettings, TrainState, draws, initial, train
from ...mace.pipeline.material import Material, loss_function, material
from ...mace.pipeline.refine import reading
from ...mace.pipeline.train_options import TrainOptions
from ..host.kept.content import base_of, content_sha256, training_key
from ..host.model.family import res_blocks
from ..host.model.forward import ModelDenoiser, load, trainable_copy
from ..host.model.memory import measure, step_aside
from ..host.model.unet import check_editable, cross_attention_keys, matrix_shape
from ..host.pipeline import ModelWeights
from ..host.progress import send_text
from ..host.text import TextEncoder
from .mask_making import source_of
from .trained import Trained
from .training_memory import MemoryMode, encode_beside
from .training_plan import TrainingPlan

MOST_SIDE_BY_SIDE = 32
# Steps between two states on disk: what a killed process loses at the most.
KEEP_EVERY = 25


@dataclass(frozen=True)
class Work:
    """One LoRA to train: its key, its images and their masks [n, H, W], as they are kept."""

    key: str
    images: ConceptImages
    masks: Tensor

    @property
    def name(self) -> str:
        """The concept's target."""
        return self.images.concept.target


class Trainer:
    """Trains the LoRAs of concepts. `kept`: those that are trained already.

    model: the refined MODEL.  refinement: its Refinement, or None.  report(names, step, losses [C]) after each step.
    skip(steps): steps that need no training, since they were made before.  Raises ValueError for another text encoder
    than the refinement's.
    """

    def __init__(
        self,
        model,
        clip,
        options: TrainOptions,
        refinement: Refinement | None,
        report: Callable,
        skip: Callable[[int], None] = lambda steps: None,
    ):
        self.model, self.options, self.refinement = model, options, refinement
        self.report, self.skip = report, skip
        self.refined_on = refinement_digest(refinement)
        # First what a model has to be: the text encoders of others are not read by this one.
        self.keys = cross_attention_keys(model, options.projections)
        check_editable(model, self.keys)
        self.encoder = TextEncoder(clip)
        self.encoder.check_width(model)
        self.pooled = self.encoder.has_pooled(model)
        self.shapes = {key: matrix_shape(model, key) for key in self.keys}
        self.lines: list[str] = []
        self._base = training_key(model)
        self.kept = Trained(options.again, res_blocks(model), self.refined_on)
        # What is known of memory as the run goes on: how steps take place, and how many fit.
        self._memory = MemoryMode(options.save_memory, self.lines)
        self._most, self._each = MOST_SIDE_BY_SIDE, 0
        self._said = TrainingPlan(self.lines)
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
        return reading(ModelWeights(base_of(self.model)), self.refinement.weights.metric)

    def key(self, images: ConceptImages, masks: Tensor) -> str:
        """What the concept's LoRA depends on (see `content.training_key`), not on the other concepts."""
        concept = images.concept
        record = self.options.record(concept.type, len(images))
        text = self.encoder.content(*concept.phrases, concept.mapping)
        shown, masked = images.source or images.latents, source_of(images, masks) or as_floats(masks)
        return content_sha256(self._base, text, concept, concept.prompts, shown, masked, record)

    def run(self, work: Sequence[Work]) -> dict[str, ErasureLora]:
        """LoRAs by key. Each group goes into the store when it is done, and where it stands every KEEP_EVERY steps.

        Raises the host's interrupt between two steps, and its out-of-memory error with advice when one concept alone
        does not fit. Nothing of the host is changed either way.
        """
        done: dict[str, ErasureLora] = {}
        if not work:
            return done
        # Concepts of one group have the same settings and stand at the same step.
        queue: dict[tuple[TrainSettings, int], list[tuple[Work, TrainState | None]]] = {}
        for item in work:
            state = self.kept.state(item.key)
            settings = self.options.settings(item.images.concept.type)
            queue.setdefault((settings, state.step if state else 0), []).append((item, state))
        resumed = {step: len(items) for (_, step), items in queue.items() if step}
        for step, count in sorted(resumed.items()):
            self.lines.append(f"{count} go on from step {step}")
            self.skip(step * count)
        with trainable_copy(self.model) as copy:
            left = sum((settings.steps - step) * len(items) for (settings, step), items in queue.items())
            if left:
                self._plan(copy, work, left)
            for (settings, step), items in queue.items():
                done |= self._groups(copy, settings, step, items)
        return done

    def _groups(self, copy, settings: TrainSettings, step: int, items: Sequence) -> dict[str, ErasureLora]:
        """LoRAs of (work, state) of the same settings at the same step, in groups that fit."""
        done: dict[str, ErasureLora] = {}
        while items:
            group, items = items[: self._most], items[self._most :]
            trained = self._group(copy, settings, step, group)
            if trained is None:
                reached = [(item, self.kept.state(item.key)) for item, _ in group]
                steps = {state.step if state else 0 for _, state in reached}
                # Where the disk keeps nothing any more all stand where they stood.
                at, again = (steps.pop(), reached) if len(steps) == 1 and min(steps) >= step else (step, group)
                self._said.begin_again(self._most, (at - step) * len(group))
                done |= self._groups(copy, settings, at, again)
                continue
            self._said.end_group((settings.steps - step) * len(group))
            for (item, _), lora in zip(group, trained, strict=True):
                self.kept.put(item.key, lora)
                done[item.key] = lora
        return done

    def _plan(self, copy, work: Sequence[Work], left: int) -> None:
        """Measure one step of one concept, decide how many train side by side, and say so.

        left: steps that are to be made, of all concepts together.
        """
        first = work[0]
        settings = self.options.settings(first.images.concept.type)
        own, *_ = self._materials(copy, [first])
        send_text("measuring what one concept takes")
        found = self._memory.run_alone(copy, first.name, partial(self._measured, copy, settings, first, own))
        if found is None:
            return self._plan(copy, work, left)
        self._each, seconds = found
        fitting = self._memory.how_many(copy.load_device, self._each, self._most)
        if not fitting:
            return self._plan(copy, work, left)
        self._most = min(self.options.side_by_side or fitting, len(work))
        self._said.begin(len(work), left, self._most, self._each, seconds)

    def _measured(self, copy, settings: TrainSettings, item: Work, own: Material) -> tuple[int, float]:
        """(bytes that one concept takes beside the model, seconds of a step of it)."""
        example = _example(item, own)
        drawn = next(draws(example, settings))
        stacked = initial([example], self.shapes, settings, dtype=torch.float32, device=copy.load_device)
        losses_of = loss_function(ModelDenoiser(copy), [own], self.options.form)
        # Encoding may have brought the text encoder back, and the copy may have made way for it.
        load(copy)
        measured = measure(copy.load_device, lambda: losses_of([drawn], stacked).sum().backward())
        # The LoRA was there before the measuring, and AdamW's two moments of it come with its first step.
        return measured.memory + 3 * sum(part.nbytes for pair in stacked.values() for part in pair), measured.seconds

    def _group(self, copy, settings: TrainSettings, step: int, group: Sequence) -> list[ErasureLora] | None:
        """LoRAs of concepts side by side; None when they did not fit, and fewer are to be tried."""
        items = [item for item, _ in group]
        states = [state for _, state in group] if step else None
        run = partial(self._train, copy, settings, items, states)
        if len(items) == 1:
            return self._memory.run_alone(copy, items[0].name, run)
        trained = self._memory.run_together(copy, run)
        if trained is None:
            # Never again as many in this run.
            self._most = max(len(items) // 2, 1)
            self.lines.append(f"{len(items)} side by side did not fit; {self._most} from there on")
        return trained

    def _materials(self, copy, items: Sequence[Work]) -> list[Material]:
        prompts = [fill(*reading) for item in items for reading in item.images.concept.readings]
        if not self.encoder.has_kept(prompts, self.pooled):
            step_aside(copy, self.encoder.clip.patcher.model_size())

        def encode() -> list[Material]:
            own = (self.options.end_of_text, self.pooled)
            with torch.inference_mode():
                return [material(self.encoder, item.images, item.masks, *own) for item in items]

        return [entry.clone() for entry in encode_beside(copy, [item.name for item in items], encode)]

    def _train(
        self, copy, settings: TrainSettings, items: Sequence[Work], states: Sequence[TrainState] | None
    ) -> list[ErasureLora]:
        materials = self._materials(copy, items)
        focus = None
        if self.options.focus and self.can_focus:
            caption, device = self.refinement.prior.mean.clone(), self.model.load_device
            focus = [entry.directions(caption, settings.rank, device, self.metric) for entry in materials]
        load(copy, self._each * len(items))
        self._said.begin_group()

        def report(step: int, values: Tensor) -> None:
            model_management.throw_exception_if_processing_interrupted()
            self.report([item.name for item in items], step, values)
            self._said.end_step(len(items), self._most)

        def keep(reached: Sequence[TrainState]) -> None:
            for item, state in zip(items, reached, strict=True):
                self.kept.put_state(item.key, state)

        trained, history = train(
            [_example(item, own) for item, own in zip(items, materials, strict=True)],
            self.shapes,
            loss_function(ModelDenoiser(copy), materials, self.options.form),
            settings,
            report,
            focus,
            states,
            keep,
            KEEP_EVERY,
            copy.model.get_dtype_inference(),
            dtype=torch.float32,
            device=copy.load_device,
        )
        return [
            ErasureLora(
                item.images.concept,
                {key: (up.cpu(), down.cpu()) for key, (up, down) in lora.items()},
                history[:, place].clone(),
                self.options.record(item.images.concept.type, len(item.images)),
                None,
                self.kept.begun_on(item.key),
            )
            for place, (item, lora) in enumerate(zip(items, trained, strict=True))
        ]


def _example(item: Work, own: Material) -> Example:
    return Example(item.name, len(own.latents), len(own.contexts), tuple(own.latents.shape[1:]))
