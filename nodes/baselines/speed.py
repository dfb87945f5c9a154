"""SPEED: an edit of the concepts' last tokens within the null space of what is preserved."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict

import torch
from comfy.utils import ProgressBar
from comfy_api.latest import io, ui

from ...mace.baselines.speed import (
    Preserved,
    SpeedSettings,
    all_tokens,
    edits_of,
    erasing_alone,
    invariants,
    last_token,
    speed,
)
from ...mace.concepts.captions import leave_out
from ...mace.formats.provenance import concept_record
from ...mace.method.moments import concept_moments, in_float64, working_device
from ...mace.pipeline.batches import chunks
from ..host.model.fp8 import fp8_note
from ..host.model.unet import ATTACHMENT, cross_attention_keys, patched
from ..host.text import TextEncoder
from ..schema import COMPARE, ConceptsType, seed_input
from .closed_form import (
    BY_TYPE,
    MAPPINGS,
    NOTHING,
    checked_preserve,
    destination_of,
    kept_inputs,
    kept_phrases,
    last_tokens,
    projections_input,
)

MOST_SCALE = 1e6
MOST_COPIES = 1000
# A phrase, what it becomes, and whether all tokens are edited or the last one alone.
Edit = tuple[str, str, bool]


def edit_batches(encoder: TextEncoder, edits: Sequence[Edit], progress: ProgressBar) -> Iterator[tuple]:
    """The batches of `concept_moments` for edits, each phrase read as a prompt of its own."""
    for part in chunks(edits):
        targets, destinations = (encoder.encoded([edit[side] for edit in part]) for side in (0, 1))
        pairings = [
            all_tokens(encoder.length(phrase), encoder.window)
            if whole
            else last_token(encoder.length(phrase), encoder.length(becomes))
            for phrase, becomes, whole in part
        ]
        yield targets, destinations, pairings
        progress.update(len(part))


class NullSpaceErasure(io.ComfyNode):
    """Edits values so that the concepts' last tokens read as their destinations', within a null space."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        defaults = SpeedSettings()
        return io.Schema(
            node_id="MACE_BaselineSPEED",
            display_name="SPEED (MACE baseline)",
            category=COMPARE,
            description="SPEED (Li et al., ICLR 2026) in its published form, to compare MACE with: one closed form "
            "edits the values in the directions that nothing preserved uses. Adds patches, touches no weight.",
            search_aliases=["mace", "speed", "null space", "baseline", "comparison", "erase", "closed form"],
            inputs=[
                io.Model.Input("model", tooltip="The model to erase from. LoRAs and merges before this node count."),
                io.Clip.Input("clip", tooltip="Its text encoder; a clip skip set before this node counts."),
                ConceptsType.Input("concepts", tooltip="What to erase, from Concepts: targets and aliases."),
                *kept_inputs(
                    "Name many: half of them are filtered out. With none at all the empty prompt is preserved, as in "
                    "the release."
                ),
                io.Float.Input(
                    "threshold",
                    default=defaults.threshold,
                    min=1e-6,
                    max=MOST_SCALE,
                    step=1e-6,
                    tooltip="Directions that what is preserved uses less than this may be edited, in squared units of "
                    "the embeddings (mean over what is preserved). Larger erases more, smaller keeps more. Published: "
                    "0.1, for 10 to 100 celebrities 0.0001.",
                ),
                io.Float.Input(
                    "retain_scale",
                    default=defaults.retain_scale,
                    min=0.01,
                    max=MOST_SCALE,
                    step=0.01,
                    tooltip="Larger keeps more of everything else. Published: 1, for celebrities 0.05, for nudity 0.7. "
                    "The weight of the edit's size, without unit.",
                ),
                io.Int.Input(
                    "augment",
                    default=defaults.augment,
                    min=0,
                    max=MOST_COPIES,
                    advanced=True,
                    tooltip="More holds more around each preserved concept and takes longer: its copies along the "
                    "direction that a matrix reads least (DPA). 0: none.",
                ),
                io.Boolean.Input(
                    "filter",
                    default=defaults.filtered,
                    advanced=True,
                    tooltip="On leaves more room to erase, off keeps more: whether only what erasing alone would move "
                    "more than the mean is preserved (IPF), for every matrix on its own. Off for celebrities, as "
                    "published. Copies are always filtered.",
                ),
                io.Float.Input(
                    "lamb",
                    default=defaults.lamb,
                    min=0.0,
                    max=MOST_SCALE,
                    step=0.01,
                    advanced=True,
                    tooltip="Larger keeps less of the empty prompt, and with it of all others, and erases more: 0 "
                    "holds start-of-text and the empty prompt exactly (IEC), more holds them with the weight 1 / "
                    "lamb, without unit. Published: 0, for nudity 0.5.",
                ),
                io.Combo.Input(
                    "destination",
                    options=[BY_TYPE, MAPPINGS, NOTHING],
                    default=BY_TYPE,
                    advanced=True,
                    tooltip="What a concept becomes. By type: the list's mapping (art for styles), and for explicit "
                    "content the empty prompt, as published. Mappings: the list's for all. Nothing: the empty prompt "
                    "for all, as published for cartoon characters.",
                ),
                projections_input(),
                seed_input("Seed of the copies, and of the centres that stand for the empty prompt.", advanced=True),
            ],
            outputs=[io.Model.Output("model", tooltip="The edited model: the input with patches on to_v (or to_k).")],
            has_intermediate_output=True,
        )

    @classmethod
    def validate_inputs(cls, preserve=None):
        return checked_preserve(preserve)

    @classmethod
    def execute(
        cls,
        model,
        clip,
        concepts,
        preserve,
        retention,
        threshold,
        retain_scale,
        augment=10,
        filter=True,
        lamb=0.0,
        destination=BY_TYPE,
        projections="values",
        seed=0,
    ) -> io.NodeOutput:
        settings = SpeedSettings(threshold, retain_scale, augment, filter, lamb)
        named = kept_phrases(preserve, retention, concepts)
        kept, left_out = leave_out(named, [phrase for concept in concepts for phrase in concept.phrases])
        keys = cross_attention_keys(model, projections)
        encoder = TextEncoder(clip)
        encoder.check_width(model)
        edits = [
            (phrase, destination_of(concept, destination), concept.type == "explicit")
            for concept in concepts
            for phrase in concept.phrases
        ]
        progress = ProgressBar(len(edits) + len(kept) + len(keys))
        device = working_device(model.load_device)
        moments = concept_moments(edit_batches(encoder, edits, progress), encoder.width, encoder.device)
        erased = edits_of(moments, device)
        empty = in_float64(encoder.encoded([""])[0], device)
        generator = torch.Generator().manual_seed(seed)
        tokens = last_tokens(encoder, kept, device, progress.update) if kept else empty[1:]
        preserved, alone = Preserved(tokens, invariants(empty, generator)), erasing_alone(erased)
        done = []

        def change(key: str, weight: torch.Tensor) -> torch.Tensor:
            made = speed(weight, erased, preserved, alone, settings, generator)
            share = float(made.change.norm()) / max(float(weight.norm()), torch.finfo(weight.dtype).tiny)
            done.append((made.kept, made.copies, made.free, share))
            return made.change.float().to(weight.device)

        edited = patched(model, keys, change, 1.0, progress.update)
        record = {
            "stage": "SPEED (baseline)",
            "concepts": [{**concept_record(c), "destination": destination_of(c, destination)} for c in concepts],
            "preserved": kept,
            "settings": {**asdict(settings), "projections": projections, "seed": seed},
            "clip_layer": clip.layer_idx,
        }
        edited.set_attachments(ATTACHMENT, (*(model.get_attachment(ATTACHMENT) or ()), record))
        lines = [f"{phrase} -> {becomes or 'the empty prompt'}" for phrase, becomes, _ in edits]
        lines.append(f"{len(kept)} concepts preserved" if kept else "the empty prompt preserved")
        if left_out:
            lines.append(f"not preserved, for they name what is erased: {', '.join(left_out)}")
        tokens_kept, copies, free, share = (sum(part) / len(done) for part in zip(*done, strict=True))
        lines.append(
            f"{len(keys)} matrices; on average {tokens_kept:.0f} of {len(tokens)} preserved tokens and {copies:.0f} "
            f"copies count, and {free:.0f} of {encoder.width} directions are free"
        )
        lines.append(f"|W' - W| / |W| = {share:.4g} on average")
        note = fp8_note(edited, keys)
        lines += [note] if note else []
        return io.NodeOutput(edited, ui=ui.PreviewText("\n".join(lines)))
