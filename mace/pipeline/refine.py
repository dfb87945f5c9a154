"""The refinement as a stage: its weights, what must go together, the patches and the record of it (Section 3.1)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import torch
from torch import Tensor

from ..concepts.concept import Concept, normalised, phrases_by_key
from ..concepts.strengths import with_strength
from ..formats.provenance import refinement_record
from ..messages import MessageError
from ..method.metric import reading_metric
from ..method.prior import Prior
from ..method.refine import (
    ALIKE,
    READING,
    LowRank,
    Refinement,
    RefineWeights,
    SingularSystem,
    pooled_refinement,
    pooled_weight_delta,
    refinement,
    weight_delta,
)
from ..method.span import RowMoments, span_refinement
from ..method.sums import Moments, texts_of
from ..presets.table10 import auto_weights
from .host import Edit, Progress, Text, Weights
from .prior import step_aside
from .written import read_weights

WIDE_TEXT = "this model's text is {} wide: it is refined without a prior, and mu measures in embeddings"
PAPER, RELEASED = "paper", "as released (squared)"
EMBEDDINGS = "embeddings (paper)"
MEASURES = {EMBEDDINGS: ALIKE, "as the model reads": READING}
MEASURE_NAMES = {metric: name for name, metric in MEASURES.items()}


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


def written_settings(lambda1, lambda3, mu, lambda1_form: str, mu_measures: str) -> dict[str, str]:
    """The weights as the artist wrote or linked them, for the provenance."""
    written = {"lambda1": lambda1, "lambda3": lambda3, "mu": mu, "lambda1_form": lambda1_form}
    return {name: str(value) for name, value in {**written, "mu_measures": mu_measures}.items()}


def check_preserved(concepts: tuple[Concept, ...], prior: Prior) -> None:
    """Raise ValueError when the prior preserves a phrase that is to be erased."""
    targets = phrases_by_key(concepts)
    for phrase in prior.preserved:
        if normalised(phrase) in targets:
            raise MessageError(
                f"{phrase!r} is to be erased, and the prior preserves it; take it out of one list, or connect the CLIP "
                "and a prior that holds its texts"
            )


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
        lines.append("the concepts to preserve have no effect: lambda3 is 0")
    if prior is not None:
        check_preserved(concepts, prior)
        if general and weights.lambda1:
            lines += held_names(concepts, prior)
    if not (weights.lambda1 and general or weights.lambda3 and domain or weights.mu):
        raise ValueError(
            "nothing holds the model's other knowledge: connect a prior (Prior or Load Prior), or set mu above 0"
        )


def held_names(concepts: tuple[Concept, ...], prior: Prior) -> list[str]:
    """A line on targets and aliases whose captions may still be in a prior that cannot step aside."""
    targets = phrases_by_key(concepts)
    unseen = set(targets) - set(map(normalised, prior.left_out)) if prior.texts is None else set()
    if not unseen:
        return []
    names = ", ".join(sorted(targets[key] for key in unseen)[:5])
    return [
        f"the prior was made without leaving out captions that name {names}, and was saved before priors kept their "
        "texts: make it again, so that they can be taken out"
    ]


def holds_pooled(weights: RefineWeights, prior: Prior | None, reads: bool, lines: list[str]) -> bool:
    """Whether something holds what a refinement of the pooled text leaves, for a model that reads it; else say so."""
    if not reads:
        return False
    general, preserve = (prior.pooled_mean, prior.pooled_preserve) if prior else (None, None)
    if prior is not None and prior.mean is not None and general is None:
        lines.append("the prior holds no pooled texts, since it was saved by an earlier version: make it again")
    if weights.mu or weights.lambda1 and general is not None or weights.lambda3 and preserve is not None:
        return True
    lines.append("the pooled text is left as it is, and may still carry the concept: nothing holds the rest of it")
    return False


def reading(model: Weights, metric: str, keys: Sequence[str] | None = None) -> Tensor | None:
    """The metric R of `mace.method.metric` for a model, where `metric` asks for it, else None.

    keys: of the weights that tell how a text is read; those of `values` if None.
    """
    if metric != READING:
        return None
    return reading_metric(model.effective(model.values if keys is None else keys), model.device)


def pooled_reading(model: Weights, metric: str, key: str, width: int) -> Tensor | None:
    """The metric R of what a model's weight `key` reads of pooled texts [width]; as `reading`."""
    if metric != READING:
        return None
    return reading_metric((weight[:, :width] for weight in model.effective([key])), model.device)


def solve_pooled(
    model: Weights, key: str, moments: Moments, weights: RefineWeights, prior: Prior | None, strengths=None
) -> Tensor:
    """T - I of the pooled text that a model reads by its weight `key`, for moments that have it; see
    `pooled_refinement`."""
    given = prior.pooled_moments() if prior else (None, None)
    metric = pooled_reading(model, weights.metric, key, moments[0].pooled.cross.shape[0])
    return pooled_refinement(moments, weights, *given, strengths, model.device, metric)


def mean_square(moments: Moments) -> float:
    """Of the numbers in the concepts' paired rows; of CLIP-L's embeddings it is about 1."""
    pairs, size = (sum(getattr(own, name) for own in moments) for name in ("pairs", "size"))
    # Sums that are broken are the solver's to report.
    return size / (pairs * moments[0].width) if pairs and size > 0 else 1.0


def solve_text(
    model: Weights,
    keys: Sequence[str],
    moments: Moments,
    weights: RefineWeights,
    prior: tuple[Tensor | None, Tensor | None],
    strengths: Sequence[float] | None,
) -> Tensor | LowRank:
    """T - I of one text that a model reads by its weights `keys`.

    prior: P and D of that text, [d, d] each or None. Raises as `refinement` does, and ValueError for a prior beside
    moments that are rows.
    """
    if not isinstance(moments[0], RowMoments):
        return refinement(moments, weights, *prior, strengths, model.device, reading(model, weights.metric, keys))
    if weights.metric != ALIKE:
        raise ValueError(WIDE_TEXT.format(moments[0].width))
    # Of many concepts the system of all rows would be the larger one.
    solve = span_refinement if sum(len(own.f) for own in moments) <= moments[0].width else refinement
    return solve(moments, weights, strengths=strengths, device=model.device)


def _rounded(delta: Tensor | LowRank | None, device: torch.device) -> Tensor | LowRank | None:
    """T - I in float32 on a device."""
    if isinstance(delta, LowRank):
        return LowRank(*(part.float().to(device) for part in (delta.left, delta.right)))
    return None if delta is None else delta.float().to(device)


def refined_by(
    model: Weights, result: Refinement, strengths: Sequence[float] | None, step: Callable[[int], None]
) -> tuple[Weights, list[str]]:
    """(the model with a Refinement that was solved for it, here or elsewhere; lines for the artist). At strength 0 it
    computes as it did. step(1): after each weight."""
    if result.strength == 0:
        return model.edited(Edit(refinement=result), step)
    ports = () if result.pooled_delta is None else model.pooled
    # Rounded once, where the products are.
    pooled = _rounded(result.pooled_delta, model.device)
    deltas = dict.fromkeys(model.tokens(result.projections), _rounded(result.transform_delta, model.device))
    for own_keys, other in zip(model.others, result.other_deltas, strict=True):
        deltas |= dict.fromkeys(own_keys, _rounded(other, model.device))

    def change(key: str, weight: Tensor) -> Tensor:
        return pooled_weight_delta(weight, pooled) if key in ports else weight_delta(weight, deltas[key])

    record = refinement_record(result, strengths)
    return model.edited(Edit((*deltas, *ports), change, result.strength, record, result), step)


def refine_model(
    model: Weights,
    text: Text,
    progress: Progress,
    concepts: tuple[Concept, ...],
    weights: RefineWeights,
    prior: Prior | None = None,
    strength: float = 1.0,
    projections: str = "both",
    settings: Mapping[str, str] = MappingProxyType({}),
    pooled: bool = True,
    own_words: bool | None = None,
    strengths: Sequence[float] | None = None,
) -> tuple[Weights, Refinement, list[str]]:
    """(the refined model, its Refinement, lines for the artist).

    settings: see `written_settings`.  pooled: also how the pooled text is read, where the model reads one.  own_words:
    the concepts' own words are moved too; None: where no LoRA can be trained for them.  strengths: one a concept in
    0..1, all 1 where None; not all 0. Raises ValueError where prior, weights and concepts contradict, and for another
    text encoder than the prior's.
    """
    lines: list[str] = []
    keys = model.tokens(projections)
    own = text.at_ports if own_words is None else own_words
    erased, whole = with_strength(concepts, strengths), prior
    if prior is not None:
        prior.check(text.fingerprint, text.other_widths)
        prior = step_aside(prior, erased, text, bool(weights.lambda1), lines, progress)
    check_prior(erased, weights, prior, lines)
    prompts = sum(len(concept.readings) for concept in concepts)
    edited = len(keys) + sum(map(len, model.others))
    step = progress.begin(prompts + edited)
    ports = model.pooled if pooled and holds_pooled(weights, prior, bool(model.pooled), lines) else ()
    moments = text.gather(text.moments(concept, step, bool(ports), own) for concept in concepts)
    texts = texts_of(moments)
    # Table 10's mu is for CLIP-L's embeddings; features of other sizes are held alike.
    scales = [mean_square(rows) if text.at_ports else 1.0 for rows in texts]
    if text.at_ports and weights.mu:
        said = ", ".join(f"{scale:.3g}" for scale in scales)
        lines.append(f"mu times {said}, the mean square of what this model reads (CLIP-L's is 1)")
    if model.left:
        lines.append(f"left as they are, though they read some prompts: {', '.join(model.left)}")
    if prior is not None and isinstance(moments[0], RowMoments):
        raise ValueError(WIDE_TEXT.format(text.width))
    solved = [replace(weights, mu=weights.mu * scale) for scale in scales]
    deltas = []
    for place, (read_by, rows) in enumerate(zip((model.values, *model.others), texts, strict=True)):
        given = prior.text_moments(place) if prior else (None, None)
        deltas.append(solve_text(model, read_by, rows, solved[place], given, strengths).cpu())
    delta, *other_deltas = deltas
    pooled_delta = None
    if ports:
        try:
            pooled_delta = solve_pooled(model, ports[0], moments, solved[0], prior, strengths)
        except SingularSystem:
            lines.append(
                "the pooled text is left as it is, and may still carry the concept: the prior's captions are too few "
                "to hold the rest of it; take more, or raise mu"
            )
            ports = ()
    result = Refinement(
        concepts,
        moments,
        prior,
        weights,
        strength,
        projections,
        dict(settings),
        delta,
        text.fingerprint,
        text.clip_layer,
        None if pooled_delta is None else pooled_delta.cpu(),
        own,
        tuple(other_deltas),
        None if whole is prior else whole,
    )
    if strength == 0:
        step(edited)
    refined, notes = refined_by(model, result, strengths, step)
    lines += notes
    lines += [
        f"{len(concepts)} concepts, {prompts} prompts, {sum(m.pairs for m in moments)} token pairs"
        + (", their own words too" if own else ""),
        f"{len(keys)} matrices, |T - I| = {float(delta.norm()):.4g}, strength {strength:g}",
    ]
    if other_deltas:
        norms = ", ".join(f"{float(change.norm()):.4g}" for change in other_deltas)
        lines.append(f"{len(other_deltas)} further texts of the prompt too, |T - I| = {norms}")
    if pooled_delta is not None:
        lines.append(f"the pooled text too: {prompts} prompts, |T - I| = {float(pooled_delta.norm()):.4g}")
    return refined, result, lines
