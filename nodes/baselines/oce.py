"""OCE: one orthogonal matrix on every projection turns the concepts' space away."""

from collections.abc import Callable, Sequence
from dataclasses import asdict

import torch
from comfy.utils import ProgressBar
from comfy_api.latest import io, ui

from ...mace.baselines.oce import (
    PUBLISHED,
    SOLUTIONS,
    OceWeights,
    kept_moment,
    oce,
    published_templates,
    published_weights,
)
from ...mace.formats.provenance import concept_record
from ...mace.method.moments import Gram, working_device
from ...mace.method.tokens import fill
from ...mace.pipeline.batches import chunks
from ...mace.pipeline.prior import BUILT_IN, CaptionSource, draw_captions, literal
from ...mace.pipeline.store import LastResult
from ...mace.pipeline.written import AUTO, read_weights
from ..host import files
from ..host.model.fp8 import fp8_note
from ..host.model.unet import ATTACHMENT, cross_attention_keys, patched
from ..host.pipeline import captions_of
from ..host.text import TextEncoder
from ..schema import COMPARE, ConceptsType, number_input
from .closed_form import checked_preserve, kept_inputs, kept_phrases, last_tokens, projections_input

MOST_CAPTIONS = 1_000_000
SCALES = ("erase_scale", "preserve_scale", "global_scale", "lamb")
YES, NO = "yes", "no"

# The last captions' moment by text encoder, with what it depends on: other weights ask for it again.
_last_general = LastResult()


def general_moment(encoder: TextEncoder, captions: Sequence[str], step: Callable[[int], None]) -> torch.Tensor:
    """K0 = E[c c^T], float64 [d, d], over the captions' tokens from start-of-text to the first end-of-text.

    step(captions): progress. Raises ValueError for no caption that fits the text encoder.
    """
    total, count = Gram(encoder.width, encoder.device), 0
    for part in chunks(captions):
        prompts = encoder.fitting(part, literal)
        if prompts:
            read = [literal(prompt) for prompt in prompts]
            for prompt, embeddings in zip(read, encoder.encode(read), strict=True):
                own = embeddings[: encoder.length(prompt) + 2]
                total.add(own)
                count += len(own)
        step(len(part))
    if not count:
        raise ValueError("there is no caption that fits the text encoder: raise count, or choose another file")
    return total.matrix / count


def kept_general(
    encoder: TextEncoder, captions: Sequence[str], source: CaptionSource, step: Callable[[int], None]
) -> torch.Tensor:
    """`general_moment` on the CPU, of the last captions from memory. source: of the captions."""
    model, key = encoder.module, (encoder.identity, source)
    found = _last_general.get(model, key)
    if found is not None:
        step(len(captions))
        return found
    # On the CPU: the host does not manage what stays on the device between runs.
    found = general_moment(encoder, captions, step).cpu()
    _last_general.put(model, key, found)
    return found


def read_in(kind: str, choice: str) -> tuple[str, ...]:
    """The templates that concepts of a type are read in besides the bare phrase. choice: AUTO, YES or NO."""
    if choice == NO:
        return ()
    # Celebrities have none of their own.
    return published_templates(kind) or (published_templates("object") if choice == YES else ())


class OrthogonalErasure(io.ComfyNode):
    """Turns what the values make of the concepts away from what lies outside their anchors."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        def scale(name: str, tooltip: str):
            return number_input(name, usual=1.0, tooltip=f"{tooltip} auto: as published for the first type.")

        return io.Schema(
            node_id="MACE_BaselineOCE",
            display_name="OCE (MACE baseline)",
            category=COMPARE,
            description="Orthogonal Concept Erasure (Sun et al., ICML 2026) in its published form, to compare MACE "
            "with: every value matrix is turned by one orthogonal matrix. Adds patches, touches no weight.",
            search_aliases=["mace", "oce", "orthogonal", "procrustes", "baseline", "comparison", "erase", "rotation"],
            inputs=[
                io.Model.Input("model", tooltip="The model to erase from. LoRAs and merges before this node count."),
                io.Clip.Input("clip", tooltip="Its text encoder; a clip skip set before this node counts."),
                ConceptsType.Input("concepts", tooltip="What to erase, from Concepts; the mappings are its anchors."),
                *kept_inputs("They count by preserve_scale, which is 0 as published for objects."),
                scale(
                    "erase_scale",
                    "Larger erases more; 0 changes nothing. Published: 2000 for objects, 500 for styles, 3000 for "
                    "explicit content, 3500, 1500 and 800 for 10, 50 and 100 celebrities. In squared units of what a "
                    "matrix makes of a token.",
                ),
                scale(
                    "preserve_scale",
                    "Larger keeps more of what is preserved. Published: 0 for objects and explicit content, 1 for "
                    "styles, 5, 2.5 and 2 for celebrities. A weight without unit.",
                ),
                number_input(
                    "global_scale",
                    usual=10.0,
                    advanced=True,
                    tooltip="Larger keeps more of what everyday captions show. auto: the published 10 for objects and "
                    "styles, 20 for explicit content, 50 and 70 for celebrities. A weight without unit.",
                ),
                number_input(
                    "lamb",
                    usual=10.0,
                    advanced=True,
                    tooltip="Larger keeps more of everything else. auto: the published 10. The weight of all "
                    "directions alike (lambda), without unit.",
                ),
                io.Combo.Input(
                    "captions",
                    options=[BUILT_IN, *files.input_files(".txt", ".json")],
                    default=BUILT_IN,
                    advanced=True,
                    tooltip="Keeps what these captions draw: a built-in grammar of everyday captions, or a text file "
                    "(one a line) or a COCO annotations .json of the input folder. Published: COCO-30k.",
                ),
                io.Int.Input(
                    "count",
                    default=1000,
                    min=1,
                    max=MOST_CAPTIONS,
                    advanced=True,
                    tooltip="More stand for more of everyday prompts and take longer: how many captions to draw. Their "
                    "mean counts, so global_scale means the same for any.",
                ),
                io.Combo.Input(
                    "templates",
                    options=[AUTO, YES, NO],
                    default=AUTO,
                    advanced=True,
                    tooltip="yes erases a concept in sentences too: it is read in five short prompts besides its bare "
                    "name. auto: as published, for all types but celebrities.",
                ),
                io.Combo.Input(
                    "solution",
                    options=list(SOLUTIONS),
                    default=PUBLISHED,
                    advanced=True,
                    tooltip="published compares with what the paper reports, derived with what it sets out to do: the "
                    "orthogonal matrix as the paper and its release print it, or the one that the paper's objective "
                    "asks for, which turns the erasure's part the other way round.",
                ),
                projections_input(),
            ],
            outputs=[io.Model.Output("model", tooltip="The edited model: the input with patches on to_v (or to_k).")],
            has_intermediate_output=True,
        )

    @classmethod
    def validate_inputs(
        cls, preserve=None, erase_scale=None, preserve_scale=None, global_scale=None, lamb=None
    ) -> bool | str:
        given = zip(SCALES, (erase_scale, preserve_scale, global_scale, lamb), strict=True)
        try:
            read_weights(*((name, text, 0.0) for name, text in given if text is not None))
        except ValueError as error:
            return str(error)
        return checked_preserve(preserve)

    @classmethod
    def execute(
        cls,
        model,
        clip,
        concepts,
        preserve,
        retention,
        erase_scale,
        preserve_scale,
        global_scale=AUTO,
        lamb=AUTO,
        captions=BUILT_IN,
        count=1000,
        templates=AUTO,
        solution=PUBLISHED,
        projections="values",
    ) -> io.NodeOutput:
        usual = asdict(published_weights(concepts[0].type, len(concepts)))
        given = zip(SCALES, (erase_scale, preserve_scale, global_scale, lamb), strict=True)
        values, lines = read_weights(*((name, text, usual[name]) for name, text in given))
        weights = OceWeights(*values)
        kept = kept_phrases(preserve, retention, concepts)
        keys = cross_attention_keys(model, projections)
        encoder = TextEncoder(clip)
        encoder.check_width(model)
        pairs = [
            (fill(template, phrase), fill(template, concept.mapping))
            for concept in concepts
            for template in ("{}", *read_in(concept.type, templates))
            for phrase in concept.phrases
        ]
        named = [f"{phrase} -> {concept.mapping}" for concept in concepts for phrase in concept.phrases]
        lines = named + [", ".join(lines), f"{len(kept)} concepts preserved"]
        if kept and not weights.preserve_scale:
            lines.append("what is preserved does not count: preserve_scale is 0")
        if not weights.erase_scale:
            return io.NodeOutput(model.clone(), ui=ui.PreviewText("\n".join(lines)))
        source = captions_of(captions, count, 0)
        drawn = draw_captions(source)
        progress = ProgressBar(2 * len(pairs) + len(kept) + len(drawn) + len(keys))
        device = working_device(model.load_device)
        erased, anchors, own = (
            last_tokens(encoder, prompts, device, progress.update)
            for prompts in ([pair[0] for pair in pairs], [pair[1] for pair in pairs], kept)
        )
        general = kept_general(encoder, drawn, source, progress.update)
        moment = kept_moment(general, own.T @ own, weights, device)
        shares = []

        def change(key: str, weight: torch.Tensor) -> torch.Tensor:
            made = oce(weight, erased, anchors, moment, weights.erase_scale, solution)
            shares.append(float(made.norm()) / max(float(weight.norm()), torch.finfo(weight.dtype).tiny))
            return made.float().to(weight.device)

        edited = patched(model, keys, change, 1.0, progress.update)
        record = {
            "stage": "OCE (baseline)",
            "concepts": [concept_record(concept) for concept in concepts],
            "preserved": kept,
            "settings": {
                **asdict(weights),
                "captions": captions,
                "count": len(drawn),
                "templates": templates,
                "solution": solution,
                "projections": projections,
            },
            "clip_layer": clip.layer_idx,
        }
        edited.set_attachments(ATTACHMENT, (*(model.get_attachment(ATTACHMENT) or ()), record))
        lines.append(f"{len(keys)} matrices turned, |W' - W| / |W| = {sum(shares) / len(shares):.4g} on average")
        note = fp8_note(edited, keys)
        lines += [note] if note else []
        return io.NodeOutput(edited, ui=ui.PreviewText("\n".join(lines)))
