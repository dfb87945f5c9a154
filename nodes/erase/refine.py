"""CFR Refine: closed-form cross-attention refinement (Section 3.1)."""

import math

from comfy.utils import ProgressBar
from comfy_api.latest import io, ui

from ...mace.concepts.concept import Concept, normalised, phrases_by_key
from ...mace.method.prior import Prior
from ...mace.method.refine import ALIKE, READING, Refinement, RefineWeights, refinement, weight_delta
from ...mace.presets.table10 import auto_weights
from ..host.kept.content import base_of
from ..host.model.fp8 import fp8_note
from ..host.model.unet import (
    ATTACHMENT,
    BASE,
    PROJECTIONS,
    REFINED,
    REFINEMENT,
    cross_attention_keys,
    patched,
    reading,
)
from ..host.text import TextEncoder
from ..schema import CATEGORY, ConceptsType, PriorType, RefinementType

AUTO = "auto"
PAPER, RELEASED = "paper", "as released (squared)"
MOST_WEIGHT = 1e9
EMBEDDINGS = "embeddings (paper)"
MEASURES = {EMBEDDINGS: ALIKE, "as the model reads": READING}
MEASURE_NAMES = {metric: name for name, metric in MEASURES.items()}


def read_weight(name: str, text: str) -> float | None:
    """A weight of the objective: None for auto, else a number in 0..MOST_WEIGHT. Raises ValueError."""
    if text.strip().lower() in (AUTO, ""):
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= MOST_WEIGHT:
        raise ValueError(f"{name}: {text!r} is neither auto nor a number from 0 to {MOST_WEIGHT:g}, such as 1e-4")
    return value


def read_weights(*rows: tuple[str, str, float]) -> tuple[list[float], list[str]]:
    """Weights of (name, text, usual value), the usual one for auto; and a line on each for the artist."""
    values, lines = [], []
    for name, text, usual in rows:
        given = read_weight(name, text)
        values.append(usual if given is None else given)
        lines.append(f"{name} {values[-1]:g}" + (" (auto)" if given is None else ""))
    return values, lines


def choose_weights(
    concepts: tuple[Concept, ...], lambda1: str, lambda3: str, mu: str, lambda1_form: str, mu_measures: str
) -> tuple[RefineWeights, list[str]]:
    """The weights to solve with, and a line on each for the artist."""
    auto = auto_weights(concepts)
    values, lines = read_weights(
        ("lambda1", lambda1, auto.lambda1), ("lambda3", lambda3, auto.lambda3), ("mu", mu, auto.mu)
    )
    if lambda1_form == RELEASED:
        values[0] **= 2
        lines[0] += f", squared as released: {values[0]:g}"
    if MEASURES[mu_measures] == READING:
        lines[2] += ", measured as the model reads"
    return RefineWeights(*values, MEASURES[mu_measures]), lines


def check_preserved(concepts: tuple[Concept, ...], prior: Prior) -> None:
    """Raise ValueError when the prior preserves a phrase that is to be erased."""
    targets = phrases_by_key(concepts)
    for phrase in prior.preserved:
        if normalised(phrase) in targets:
            raise ValueError(f"{phrase!r} is to be erased, and the prior preserves it; take it out of one list")


def check_prior(concepts: tuple[Concept, ...], weights: RefineWeights, prior: Prior | None, lines: list[str]) -> None:
    """Say where prior, weights and concepts do not go together; raise ValueError where they contradict."""
    general = prior is not None and prior.mean is not None
    domain = prior is not None and prior.preserve is not None
    if weights.lambda1 and not general:
        lines.append("lambda1 has no effect: no prior with captions is connected")
    if weights.lambda3 and not domain:
        lines.append("lambda3 has no effect: no prior with concepts to preserve is connected")
    if general and not weights.lambda1:
        lines.append("the prior's captions have no effect: lambda1 is 0; auto has none for objects")
    if domain and not weights.lambda3:
        lines.append("the concepts to preserve have no effect: lambda3 is 0; auto has it for people and styles")
    if prior is not None:
        check_preserved(concepts, prior)
        targets = phrases_by_key(concepts)
        unseen = set(targets) - set(map(normalised, prior.left_out))
        if general and weights.lambda1 and unseen:
            names = ", ".join(sorted(targets[key] for key in unseen)[:5])
            lines.append(f"the prior was made without leaving out captions that name: {names}")
    if not (weights.lambda1 and general or weights.lambda3 and domain or weights.mu):
        raise ValueError(
            "nothing holds the model's other knowledge: connect a prior (Prior or Load Prior), or set mu above 0"
        )


def concept_record(concept: Concept) -> dict:
    """A concept as it stands in a saved checkpoint's provenance."""
    return {
        "target": concept.target,
        "mapping": concept.mapping,
        "type": concept.type,
        "aliases": list(concept.aliases),
        "own_prompts": list(concept.templates),
    }


def prior_record(prior: Prior | None) -> dict | None:
    """A prior as it stands in a saved checkpoint's provenance."""
    if prior is None:
        return None
    return {"source": prior.source, "captions": prior.captions, "preserved": list(prior.preserved)}


def stage_record(done: Refinement) -> dict:
    """One refinement as it stands in a saved checkpoint's provenance."""
    return {
        "stage": "refinement",
        "concepts": [concept_record(concept) for concept in done.concepts],
        "settings": dict(done.settings),
        "clip_layer": done.clip_layer,
        "lambda1": done.weights.lambda1,
        "lambda3": done.weights.lambda3,
        "mu": done.weights.mu,
        "metric": done.weights.metric,
        "strength": done.strength,
        "projections": done.projections,
        "prior": prior_record(done.prior),
    }


class CFRRefine(io.ComfyNode):
    """Refines keys and values so that the words around a concept stop carrying it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        weight = "A number, or auto for Table 10's value by type."
        return io.Schema(
            node_id="MACE_CFRRefine",
            display_name="CFR Refine (MACE)",
            category=CATEGORY,
            description="Closed-form cross-attention refinement: the words around a concept (and the end of the "
            "prompt) stop carrying it; its own words are left to the erasure LoRA. Adds patches, touches no weight.",
            search_aliases=["mace", "erase", "unlearn", "closed form", "refinement", "uce", "concept erasure"],
            inputs=[
                io.Model.Input("model", tooltip="The model to erase from. LoRAs and merges before this node count."),
                io.Clip.Input("clip", tooltip="Its text encoder; a clip skip set before this node counts."),
                ConceptsType.Input("concepts", tooltip="What to erase, from Concepts."),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    display_mode=io.NumberDisplay.slider,
                    tooltip="How far the refinement goes, for all concepts alike: 1 is the paper's, 0 gives the input "
                    "model to the bit.",
                ),
                io.String.Input(
                    "lambda1",
                    default=AUTO,
                    tooltip=f"Weight of the prior's captions (lambda1 of Eq. 1, without unit). {weight} 1e-4 for "
                    "people and styles, 7e-7 for explicit content, none for objects. Larger keeps more.",
                ),
                io.String.Input(
                    "lambda3",
                    default=AUTO,
                    tooltip=f"Weight of the concepts to preserve (lambda3 of Eq. 19, without unit). {weight} 0.8 to 20 "
                    "by the number of people, 8 for styles, none for objects. Larger keeps more.",
                ),
                io.String.Input(
                    "mu",
                    display_name="identity weight mu",
                    default=AUTO,
                    tooltip=f"Weight of ||W' - W||^2 (Appendix C.2, without unit). {weight} 0.1 to 1000 for the ten "
                    "CIFAR classes, 10 for other objects, 0.1 for explicit content, 0 for people and styles. Larger "
                    "keeps more.",
                ),
                io.Combo.Input(
                    "projections",
                    options=list(PROJECTIONS),
                    default="both",
                    tooltip="Refine keys (to_k), values (to_v) or both, the paper's choice.",
                ),
                io.Combo.Input(
                    "lambda1_form",
                    options=[PAPER, RELEASED],
                    default=PAPER,
                    advanced=True,
                    tooltip="The published code applies lambda1 twice, which makes it its square (1e-8 for 1e-4). "
                    "On the demo model the fused result is the same.",
                ),
                io.Combo.Input(
                    "mu_measures",
                    options=list(MEASURES),
                    optional=True,
                    advanced=True,
                    tooltip="What mu measures a change in: the text embeddings, as the paper has it, or what the "
                    "model's values read of them (ours), which takes more of the synonyms and leaves more of the "
                    "rest. Then raise mu: 1e5 on the demo model. Fuse LoRAs and focus follow.",
                ),
                PriorType.Input(
                    "prior",
                    optional=True,
                    tooltip="What to keep, from Prior or Load Prior. Needed for people and styles with automatic "
                    "settings, and wise for explicit content.",
                ),
            ],
            outputs=[
                io.Model.Output("model", tooltip="The refined model: the input with patches on to_k and to_v."),
                RefinementType.Output("refinement", tooltip="Transform and moments, for the later stages."),
            ],
            has_intermediate_output=True,
        )

    @classmethod
    def validate_inputs(cls, lambda1=None, lambda3=None, mu=None):
        for name, text in (("lambda1", lambda1), ("lambda3", lambda3), ("mu", mu)):
            try:
                # A linked value is there only when the node runs.
                read_weight(name, AUTO if text is None else text)
            except ValueError as error:
                return str(error)
        return True

    @classmethod
    def execute(
        cls,
        model,
        clip,
        concepts,
        strength,
        lambda1,
        lambda3,
        mu,
        projections,
        lambda1_form,
        prior=None,
        mu_measures=EMBEDDINGS,
    ) -> io.NodeOutput:
        weights, lines = choose_weights(concepts, lambda1, lambda3, mu, lambda1_form, mu_measures)
        check_prior(concepts, weights, prior, lines)
        keys = cross_attention_keys(model, projections)
        encoder = TextEncoder(clip)
        encoder.check_width(model)
        if prior is not None:
            prior.check(encoder.fingerprint)
        prompts = sum(len(concept.readings) for concept in concepts)
        progress = ProgressBar(prompts + len(keys))
        moments = tuple(encoder.moments(concept, progress.update) for concept in concepts)
        delta = refinement(
            moments,
            weights,
            prior.general_moment() if prior else None,
            prior.preserve_moment() if prior else None,
            device=model.load_device,
            metric=reading(model, weights.metric),
        )
        if strength == 0:
            refined = model.clone()
            progress.update(len(keys))
        else:
            refined = patched(model, keys, lambda key, w: weight_delta(w, delta), strength, progress.update)
        settings = {"lambda1": lambda1, "lambda3": lambda3, "mu": mu, "lambda1_form": lambda1_form}
        settings["mu_measures"] = mu_measures
        result = Refinement(
            concepts,
            moments,
            prior,
            weights,
            strength,
            projections,
            settings,
            delta.cpu(),
            encoder.fingerprint,
            clip.layer_idx,
        )
        if strength > 0:
            refined.set_attachments(ATTACHMENT, (*(model.get_attachment(ATTACHMENT) or ()), stage_record(result)))
            changes = tuple(refined.patches[key][-1][1][1][0] for key in keys)
            refined.set_attachments(REFINED, (*(model.get_attachment(REFINED) or ()), *changes))
        refined.set_attachments(BASE, base_of(model))
        refined.set_attachments(REFINEMENT, result)
        note = fp8_note(refined, keys) if strength > 0 else None
        lines += [note] if note else []
        lines += [
            f"{len(concepts)} concepts, {prompts} prompts, {sum(m.pairs for m in moments)} token pairs",
            f"{len(keys)} matrices, |T - I| = {float(delta.norm()):.4g}, strength {strength:g}",
        ]
        return io.NodeOutput(refined, result, ui=ui.PreviewText("\n".join(lines)))
