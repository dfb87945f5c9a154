"""UCE: unified concept editing of the concepts' own tokens."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict

from comfy.utils import ProgressBar
from comfy_api.latest import io, ui

from ...mace.baselines.uce import UceWeights, edited_tokens, uce
from ...mace.formats.provenance import concept_record
from ...mace.method.moments import concept_moments
from ...mace.method.refine import weight_delta
from ...mace.pipeline.batches import chunks
from ..host.model.fp8 import fp8_note
from ..host.model.unet import ATTACHMENT, cross_attention_keys, patched
from ..host.text import TextEncoder
from ..schema import COMPARE, ConceptsType
from .closed_form import BY_TYPE, MAPPINGS, NOTHING, checked_preserve, destination_of, kept_inputs, kept_phrases

MOST_SCALE = 1e6


def edit_batches(encoder: TextEncoder, edits: Sequence[tuple[str, str]], progress: ProgressBar) -> Iterator[tuple]:
    """The batches of `concept_moments` for edits (phrase, destination), each read as a prompt of its own."""
    for part in chunks(edits):
        targets, destinations = (encoder.encoded([edit[side] for edit in part]) for side in (0, 1))
        pairings = [edited_tokens(encoder.length(t), encoder.length(d), encoder.window) for t, d in part]
        yield targets, destinations, pairings
        progress.update(len(part))


class UnifiedConceptEditing(io.ComfyNode):
    """Edits keys and values so that the concepts' own tokens read as their destinations'."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        def scale(name: str, default: float, tooltip: str):
            return io.Float.Input(name, default=default, min=0.0, max=MOST_SCALE, step=0.01, tooltip=tooltip)

        return io.Schema(
            node_id="MACE_BaselineUCE",
            display_name="UCE (MACE baseline)",
            category=COMPARE,
            description="Unified Concept Editing (Gandikota et al. 2024) in its published form, to compare MACE with: "
            "one closed form edits what the concept's own tokens mean to the model. Adds patches, touches no weight.",
            search_aliases=["mace", "uce", "unified concept editing", "baseline", "comparison", "erase", "closed form"],
            inputs=[
                io.Model.Input("model", tooltip="The model to erase from. LoRAs and merges before this node count."),
                io.Clip.Input("clip", tooltip="Its text encoder; a clip skip set before this node counts."),
                ConceptsType.Input("concepts", tooltip="What to erase, from Concepts: targets and aliases."),
                *kept_inputs("With none at all the empty prompt is preserved, as in the release."),
                scale("erase_scale", 1.0, "Larger erases more; 0 changes nothing. The edits' weight, without unit."),
                scale("preserve_scale", 0.1, "Larger keeps more of what is preserved. A weight without unit."),
                scale(
                    "lamb",
                    0.5,
                    "Larger keeps more of everything else: the weight of staying near the original matrices (lambda), "
                    "without unit. Both releases run with 0.5; the first one's function has 0.1, which its script "
                    "overrides.",
                ),
                io.Combo.Input(
                    "destination",
                    options=[BY_TYPE, MAPPINGS, NOTHING],
                    default=BY_TYPE,
                    advanced=True,
                    tooltip="What a concept becomes. By type: the list's mapping (art for styles), and for explicit "
                    "content the empty prompt, as published. Mappings: the list's for all. Nothing: the empty prompt "
                    "for all, the release's default for objects.",
                ),
            ],
            outputs=[io.Model.Output("model", tooltip="The edited model: the input with patches on to_k and to_v.")],
            has_intermediate_output=True,
        )

    @classmethod
    def validate_inputs(cls, preserve=None):
        return checked_preserve(preserve)

    @classmethod
    def execute(
        cls, model, clip, concepts, preserve, retention, erase_scale, preserve_scale, lamb, destination=BY_TYPE
    ) -> io.NodeOutput:
        weights = UceWeights(erase_scale, preserve_scale, lamb)
        kept = kept_phrases(preserve, retention, concepts)
        keys = cross_attention_keys(model)
        encoder = TextEncoder(clip)
        encoder.check_width(model)
        edits = [(phrase, destination_of(concept, destination)) for concept in concepts for phrase in concept.phrases]
        prompts = kept or [""]
        progress = ProgressBar(len(edits) + len(prompts) + len(keys))
        moments = concept_moments(edit_batches(encoder, edits, progress), encoder.width, encoder.device)
        delta = uce(moments, weights, encoder.gram(prompts, progress.update)[0], model.load_device)
        if erase_scale == 0:
            edited = model.clone()
            progress.update(len(keys))
        else:
            edited = patched(model, keys, lambda key, w: weight_delta(w, delta), 1.0, progress.update)
            record = {
                "stage": "UCE (baseline)",
                "concepts": [{**concept_record(c), "destination": destination_of(c, destination)} for c in concepts],
                "preserved": kept,
                "settings": asdict(weights),
                "clip_layer": clip.layer_idx,
            }
            edited.set_attachments(ATTACHMENT, (*(model.get_attachment(ATTACHMENT) or ()), record))
        lines = [f"{phrase} -> {becomes or 'the empty prompt'}" for phrase, becomes in edits]
        lines.append(f"{len(kept)} concepts preserved" if kept else "the empty prompt preserved")
        lines.append(f"{len(keys)} matrices, |T - I| = {float(delta.norm()):.4g}")
        note = fp8_note(edited, keys) if erase_scale else None
        lines += [note] if note else []
        return io.NodeOutput(edited, ui=ui.PreviewText("\n".join(lines)))
