"""The whole of an erasure as a stage: images, masks, refinement, training and fusion, with a preset's settings."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import astuple, replace

from ...mace.concepts.concept import Concept
from ...mace.concepts.strengths import strange_lines, strengths_of, with_strength
from ...mace.formats.lora_set import LoraSet
from ...mace.method.prior import Prior
from ...mace.method.refine import ALIKE, Refinement
from ...mace.pipeline.fusion import CLOSED_FORM, check_base, fused_model, pull_name
from ...mace.pipeline.prior import BUILT_IN, CaptionSource, build_prior, preserve_also
from ...mace.pipeline.refine import MEASURE_NAMES, PAPER, RELEASED, choose_weights, refine_model, written_settings
from ...mace.pipeline.train_options import TrainOptions
from ...mace.pipeline.written import AUTO
from ...mace.presets.leaning import holding, leaning
from ...mace.presets.presets import Preset
from ..host.model.family import usual_guidance
from ..host.model.unet import is_unet
from ..host.pipeline import ModelWeights, text_and_weights
from ..host.progress import NodeProgress, duration, listed, send_text
from ..host.text import TextEncoder
from .alias_search import Found, find_aliases
from .alias_words import AliasSettings
from .captions import USUAL, in_time
from .estimate import Estimate
from .images import make_images
from .keeping import captions_held_by, kept_beside, kept_lines, with_named
from .mask_making import ATTENTION, make_masks
from .nearby import fused_lines, moved_lines
from .planning import COMPARING, OTHER_WORDS, PICTURES, READING, TRAINING, Plan
from .planning import estimate as left_to_do
from .train import train_loras
from .wanted import Erased, Wanted

# The host's usual sampling, as its own txt2img template has it.
SAMPLING = {"steps": 20, "cfg": 7.0, "sampler_name": "euler", "scheduler": "normal"}
IMAGES, CAPTIONS = 8, CaptionSource(BUILT_IN, count=USUAL, seed=0)
LEAN = "gentle_strong"


def check_vae(vae) -> None:
    """Raise ValueError without a VAE."""
    if vae is None:
        raise ValueError("the vae input is empty: this checkpoint has none; connect Load VAE")


def sampling(model) -> dict:
    """How pictures of a MODEL are drawn: steps, cfg, sampler_name, scheduler."""
    return SAMPLING if is_unet(model) else {**SAMPLING, "cfg": usual_guidance(model)}


def needs_captions(concepts: Sequence[Concept], chosen: Preset) -> bool:
    """Whether a preset's refinement of a list has a weight for captions."""
    return bool(chosen.weights(concepts).lambda1)


def refine_as_preset(
    model,
    clip,
    concepts: tuple[Concept, ...],
    chosen: Preset,
    prior: Prior | None,
    strengths: Sequence[float] | None = None,
    lean: float = 0.0,
    keep: Sequence[Concept] = (),
):
    """(refined MODEL, Refinement, lines for the artist, the prior before it stepped aside) with a preset's weights.

    prior: where None, built-in captions are read if the weights need them, fewer on a slow CPU.  strengths: see
    `refine_model`.  lean: see `mace.presets.leaning`.  keep: to preserve besides what the prior does.
    """
    text, original = text_and_weights(model, clip)
    own = chosen.own_weights(concepts)
    read: Sequence[str] = ()
    if prior is None and needs_captions(concepts, chosen):
        reading = in_time(text, clip, CAPTIONS)
        reading.say()
        prior, _ = build_prior(text, NodeProgress(), reading.source, (), concepts, keep)
        read = reading.lines
    elif keep:
        send_text("reading what is kept")
        if prior is None:
            prior, _ = build_prior(text, NodeProgress(), replace(CAPTIONS, count=0), (), concepts, keep)
        else:
            prior.check(text.fingerprint, text.other_widths)
            prior = preserve_also(prior, keep, text, NodeProgress())
    send_text("refining")
    # As text, so that auto stays auto in what the LoRAs are kept by, whatever it takes for this list; so does the form
    # of a preset's weight that grows with the list.
    written, form = (AUTO,) * 3, RELEASED if chosen.lambda1_squared else PAPER
    presets = chosen.weights(concepts)
    usual = with_named(presets, prior)
    if own or lean:
        written, form = tuple(map(repr, astuple(leaning(usual, lean))[:3])), PAPER
    elif usual != presets:
        written = (AUTO, repr(usual.lambda3), AUTO)
    told = chosen.refine_forms if own and not lean else written
    if usual != presets:
        told = (told[0], written[1], told[2])
    measures = MEASURE_NAMES[own.metric if own else ALIKE]
    weights, lines = choose_weights(concepts, *written, form, measures)
    settings = written_settings(*told, form, measures)
    how = dict(settings=settings, strengths=strengths, own_words=chosen.own_words)
    refined, refinement, about = refine_model(original, text, NodeProgress(), concepts, weights, prior, **how)
    return refined.model, refinement, [*read, *lines, *about], prior


def leant(refinement: Refinement, lean: float) -> Refinement:
    """A refinement as the fusion takes it, which solves Eq. 19 again: with its weights at `lean`.

    Its LoRAs are those of the refinement as it is: another lean trains nothing.
    """
    if not lean:
        return refinement
    weights = leaning(refinement.weights, lean)
    return replace(refinement, weights=weights, settings={**refinement.settings, LEAN: repr(lean)})


def lean_lines(lean: float) -> list[str]:
    """What `lean` does, for the artist."""
    return [f"gentle - strong {lean:g}: what holds the rest weighs {holding(lean):.3g} times as much"] if lean else []


def how_done(model, concepts: Sequence[Concept], wanted: Wanted) -> Plan:
    """How an erasure by a preset is done, for `planning.estimate`."""
    trained = trains(model, wanted.preset)
    reads = wanted.prior is None and needs_captions(concepts, wanted.preset)
    return Plan(
        wanted,
        drawn_with(wanted) if trained else asked_with(model, wanted),
        preset_training(wanted) if trained else None,
        CAPTIONS if reads else None,
        asking(wanted),
    )


def estimate(model, clip, vae, concepts: tuple[Concept, ...], wanted: Wanted) -> Estimate:
    """What of an erasure is left to do, and how long that will take; see `planning.estimate`."""
    return left_to_do(model, clip, vae, concepts, how_done(model, concepts, wanted))


def trains(model, chosen: Preset) -> bool:
    """Whether LoRAs are trained to erase from a model by a preset."""
    return is_unet(model) and not chosen.closed_form


def answered(found: Found, concepts: tuple[Concept, ...], wanted: Wanted) -> tuple[Sequence[Concept], dict]:
    """(what to keep of itself, {part: lines for the artist}) of what the model said of other words."""
    keep = kept_beside(found, concepts) if wanted.keep_near else ()
    said = {"Kept": kept_lines(keep)} if wanted.keep_near else {}
    return keep, said | ({"Aliases": found.lines} if wanted.find_aliases else {})


def by_closed_form(model, clip, vae, concepts: tuple[Concept, ...], wanted: Wanted) -> Erased:
    """Erasing without LoRAs (see `trains`): the refinement is all, and moves the concepts' own words."""
    start = time.perf_counter()
    if wanted.asks:
        check_vae(vae)
    text, _ = text_and_weights(model, clip)
    if wanted.keep_near and text.at_ports:
        text.check_holds_prior("turn keep_near off")
    plan = estimate(model, clip, vae, concepts, wanted)
    strange = strange_lines(wanted.strengths, concepts)
    send_text("\n".join([*wanted.notes, *strange, *plan.lines, "reading prompts"]))
    of = "by this preset" if is_unet(model) else "for this model"
    lines = [f"No LoRA is trained {of}: the refinement is all, and moves the concepts' own words too."]
    lines += [*strange, *in_parts({"Estimate": plan.lines} if plan.lines else {})]
    strengths = strengths_of(wanted.strengths, concepts)
    keep: Sequence[Concept] = ()
    if wanted.asks:
        plan.say(PICTURES, "drawing pictures to ask for other words by")
        images = make_images(model, clip, vae, concepts, AUTO, "", asked_with(model, wanted))
        plan.say(OTHER_WORDS, "asking for other words")
        found = find_aliases(model, clip, images, asking(wanted), captions_held_by(wanted.prior))
        keep, said = answered(found, concepts, wanted)
        lines += in_parts(said)
        if wanted.find_aliases:
            concepts = found.concepts
    targets = [[concept.target, strength] for concept, strength in zip(concepts, strengths, strict=True)]
    erased, moved = model.clone(), []
    if any(strengths):
        own = strengths if min(strengths) < 1 else None
        how = (wanted.preset, wanted.prior, own, wanted.lean, keep)
        erased, _, about, prior = refine_as_preset(model, clip, concepts, *how)
        moved = moved_lines(model, erased, clip, with_strength(concepts, strengths), prior)
        lines += ["Refinement:", *about, *lean_lines(wanted.lean)]
    else:
        lines.append("All strengths are 0: the model is as it was.")
    return Erased(erased, None, [result_line(targets, time.perf_counter() - start), *moved, *lines], targets)


def erase(model, clip, vae, concepts: tuple[Concept, ...], wanted: Wanted) -> Erased:
    """Every stage, one after the other. Raises what the stages raise."""
    check_base(ModelWeights(model))
    # A bad line is said now, not after the training.
    strengths_of(wanted.strengths, concepts)
    if not trains(model, wanted.preset):
        return by_closed_form(model, clip, vae, concepts, wanted)
    check_vae(vae)
    start = time.perf_counter()
    plan = estimate(model, clip, vae, concepts, wanted)
    about: dict[str, Sequence[str]] = {"Estimate": plan.lines} if plan.lines else {}
    strange = strange_lines(wanted.strengths, concepts)
    send_text("\n".join([*wanted.notes, *strange, *plan.lines, "drawing training images"]))
    images = make_images(model, clip, vae, concepts, AUTO, "", drawn_with(wanted))
    keep: Sequence[Concept] = ()
    if wanted.asks:
        plan.say(OTHER_WORDS, "asking for other words")
        found = find_aliases(model, clip, images, asking(wanted), captions_held_by(wanted.prior))
        keep, said = answered(found, concepts, wanted)
        about |= said
        if wanted.find_aliases:
            images, concepts = found.images, found.concepts
    plan.say(READING, "reading prompts")
    refined, refinement, about["Refinement"], prior = refine_as_preset(
        model, clip, concepts, wanted.preset, wanted.prior, keep=keep
    )
    plan.say(TRAINING, "finding the concepts in the images")
    masks, about["Masks"], _ = make_masks(model, clip, images, ATTENTION)
    loras, about["Training"] = train_loras(refined, clip, images, masks, preset_training(wanted), plan.plans)
    plan.say(COMPARING, "fusing")
    fused, about["Fusion"], moved, targets = fuse_as_preset(model, clip, loras, refinement, prior, wanted)
    result = result_line(targets, time.perf_counter() - start)
    send_text(result)
    # What became of it first: only so many lines of a report are seen on the node.
    return Erased(fused, loras, [result, *moved, *in_parts(about)], targets)


def result_line(targets: Sequence, seconds: float) -> str:
    """What is erased, and how long it took. targets: [target, strength] of every concept."""
    named = [target if strength == 1 else f"{target} ({strength:g})" for target, strength in targets if strength]
    result = f"Erased: {listed(named)}." if named else "Nothing is erased."
    return f"{result} It took {duration(seconds)}."


def in_parts(about: Mapping[str, Sequence[str]]) -> list[str]:
    """Lines for the artist, each part's below its name."""
    return [line for name, part in about.items() for line in (f"{name}:", *part)]


def drawn_with(wanted: Wanted) -> dict:
    """How training images are drawn from a UNet; see `images.Sampling`."""
    return {"count": IMAGES, **wanted.drawing, **SAMPLING}


def asking(wanted: Wanted) -> AliasSettings:
    """How the model is asked for other words: for what lies near only where it is kept."""
    usual = AliasSettings()
    return usual if wanted.keep_near else replace(usual, neighbours=0)


def asked_with(model, wanted: Wanted) -> dict:
    """How pictures are drawn to ask for other words by, where none are trained on; see `images.Sampling`."""
    return {"count": AliasSettings().pictures, **wanted.drawing, **sampling(model)}


def preset_training(wanted: Wanted) -> TrainOptions:
    """How a preset trains."""
    chosen = wanted.preset
    return TrainOptions(
        form=chosen.loss, end_of_text=chosen.end_of_text, focus=chosen.focus, seed=wanted.seed, by_type=chosen.lora
    )


def fuse_as_preset(
    model,
    clip,
    loras: LoraSet,
    refinement: Refinement,
    prior: Prior | None,
    wanted: Wanted,
):
    """(fused MODEL, lines for the artist, those on how far other words moved, [target, strength] of every concept) with
    a preset's weights.

    loras: trained on the refinement.  prior: see `refine_as_preset`.
    """
    fuse_as, weights = (AUTO,) * 3, None
    if wanted.preset.fuse is not None:
        weights = with_named(wanted.preset.fuse(len(refinement.concepts)), prior)
        fuse_as = tuple(map(repr, astuple(leaning(weights, wanted.lean))[:3]))
    fused, about, targets = fused_model(
        ModelWeights(model),
        TextEncoder(clip),
        NodeProgress(),
        loras,
        leant(refinement, wanted.lean),
        prior,
        CLOSED_FORM,
        wanted.strengths,
        fuse_as,
        pull_name(weights),
    )
    moved = fused_lines(model, fused.model, clip, loras, refinement, prior, targets)
    return fused.model, [*lean_lines(wanted.lean), *about], moved, targets
