"""Training as a stage: what is kept, what is trained, and the set that comes of it (Section 3.2)."""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from ...mace.concepts.concept import normalised
from ...mace.concepts.images import ConceptImages
from ...mace.formats.lora_set import ErasureLora, LoraSet, recipe_of
from ...mace.pipeline.train_options import TrainOptions
from ..host.kept import lora_store
from ..host.kept.store import ContentStore
from ..host.model.family import family, res_blocks
from ..host.model.unet import REFINEMENT
from ..host.progress import LossProgress
from .trained import is_trained
from .trainer import Trainer, Work

PLANS_BYTES = 1 << 20

# The LoRAs' keys by plans: what is known of a training before its pictures and the refinement are there.
_plans = ContentStore(PLANS_BYTES)


def train_loras(
    model,
    clip,
    images: Sequence[ConceptImages],
    masks: Sequence[Tensor],
    options: TrainOptions,
    plans: Sequence[str] = (),
) -> tuple[LoraSet, list[str]]:
    """Erasure LoRAs of every concept, trained or from the store; and lines for the artist.

    model: the refined MODEL.  masks: [n, H, W] for each concept's images, as they are kept (see `mace.masks.kept`).
    plans: by which `steps_left` finds them again, one a concept.
    """
    refinement = model.get_attachment(REFINEMENT)
    steps = [options.settings(entry.concept.type).steps for entry in images]
    progress = LossProgress(sum(steps))
    by_name = {entry.concept.target: count for entry, count in zip(images, steps, strict=True)}

    def report(names, step, losses):
        progress.report(names, step, losses, by_name[names[0]])

    trainer = Trainer(model, clip, options, refinement, report, progress.skip)
    keys = [trainer.key(entry, mask) for entry, mask in zip(images, masks, strict=True)]
    kept = trainer.kept.known(keys)
    for plan, key in zip(plans, keys, strict=False):
        _plans.put(plan, key, len(plan) + len(key))
        trainer.kept.keep_plan(plan, key)
    found = {key: lora for key, (lora, _) in kept.items() if lora is not None}
    work = [Work(key, *pair) for key, *pair in zip(keys, images, masks, strict=True) if key not in found]
    progress.skip(sum(count for key, count in zip(keys, steps, strict=True) if key in found))
    trained = trainer.run(work)
    lines = [f"{len(trained)} LoRAs trained, {len(found)} of {len(images)} kept from before"]
    read = sum(from_disk for _, from_disk in kept.values())
    if read:
        lines.append(f"{read} of them read from disk")
    lines += trainer.lines + trainer.kept.lines
    if refinement is None:
        lines.append("the model is not refined: connect CFR Refine's model, since MACE trains on it")
    else:
        shown = {normalised(entry.concept.target) for entry in images}
        bare = [c.target for c in refinement.concepts if normalised(c.target) not in shown]
        if bare:
            lines.append(f"refined, but without images and so without a LoRA: {', '.join(bare)}")
    if options.focus and not trainer.can_focus:
        lines.append("focus has no effect: the refinement has no prior with captions")
    another = {"trained when the list was another one, and kept": found}
    another["begun when the list was another one, and finished"] = trained
    for words, own in another.items():
        elsewhere = [lora.concept.target for lora in own.values() if lora.refined_on != trainer.refined_on]
        if elsewhere:
            lines.append(f"{words}: {', '.join(elsewhere)}")
    moments = {}
    if refinement is not None:
        moments = {normalised(c.target): m for c, m in zip(refinement.concepts, refinement.moments, strict=True)}
    loras = []
    for key in keys:
        lora = {**found, **trained}[key]
        loras.append(replace(lora, moments=moments.get(normalised(lora.concept.target))))
        lines.append(loss_line(lora))
    recipe = None if refinement is None else recipe_of(refinement, trainer.refined_on)
    return LoraSet(tuple(loras), recipe, res_blocks(model), family(model)), lines


def steps_left(plan: str, steps: int) -> int:
    """How many of the steps of a training are still to be made, by its plan; all where nothing is known of it."""
    disk = lora_store.store()
    key = _plans.get(plan) or disk.planned(plan)
    if key is None:
        return steps
    if is_trained(key):
        return 0
    state = disk.state(key)
    return steps - (state.step if state else 0)


def loss_line(lora: ErasureLora) -> str:
    """How a LoRA's training went, for the artist."""
    first, last = (float(part.mean()) for part in (lora.losses[:5], lora.losses[-5:]))
    return f"{lora.concept.target}: loss {first:.4g} to {last:.4g} in {len(lora.losses)} steps"
