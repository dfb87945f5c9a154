"""What of an erasure is kept from before, and how long the rest will take."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ...mace.concepts.concept import Concept
from ...mace.concepts.lists import RETENTION
from ...mace.method.tokens import fill
from ...mace.pipeline.prior import CaptionSource, has_read_preserved
from ...mace.pipeline.train_options import TrainOptions
from ...mace.pipeline.written import AUTO
from ..host.any_text import text_to_draw_with
from ..host.kept.content import content_sha256, training_key
from ..host.pipeline import text_and_weights
from ..host.progress import send_text
from ..host.text import TextEncoder
from .alias_search import predictions_of, unasked
from .alias_words import AliasSettings, longer_names_to_try, words_to_try
from .captions import in_time
from .estimate import TRAINED, Estimate, estimated, measure_speed
from .images import kept_images, template_of
from .keeping import captions_held_by
from .train import steps_left
from .wanted import Wanted

# Parts of the work, as the estimate names them.
PICTURES, OTHER_WORDS, READING = "pictures", "other words", "reading"
TRAINING, COMPARING = "training", "before and after"
# The pictures before and after, one for each seed.
COMPARED = 2


@dataclass(frozen=True)
class Plan:
    """How an erasure is done. wanted: what the artist sets.  drawing: of the pictures, see `images.Sampling`.
    training: None where no LoRA is trained.  captions: None where none are read.  asking: for other words.
    """

    wanted: Wanted
    drawing: dict
    training: TrainOptions | None
    captions: CaptionSource | None
    asking: AliasSettings


def estimate(model, clip, vae, concepts: tuple[Concept, ...], plan: Plan) -> Estimate:
    """What of an erasure is left to do, and how long that will take; empty where nothing is.

    What is kept from before is looked up: pictures, answers on other words, moments, captions, and LoRAs by what they
    were planned as (see `planned`), also after a restart.
    """
    send_text("measuring what a prompt and a picture take")
    wanted, drawing, asking = plan.wanted, plan.drawing, plan.asking
    text, _ = text_and_weights(model, clip)
    draws = plan.training or wanted.asks
    kept = kept_images(model, clip, vae, concepts, AUTO, "", drawing) if draws else []
    undrawn = sum(images is None for _, images in kept)
    asked, tried, images = [False] * len(concepts), [], [images for _, images in kept]
    if wanted.asks:
        encoder = text_to_draw_with(clip, model)
        shown = [(concept, template_of(concept, AUTO)) for concept in concepts]
        tried = words_to_try(encoder, shown, asking)
        asked = unasked(model, encoder, images, tried, asking)
    steps, named = [0] * len(concepts), []
    if plan.training:
        named = planned(model, clip, concepts, plan, [key for key, _ in kept])
        every = [plan.training.settings(concept.type).steps for concept in concepts]
        steps = [steps_left(*pair) for pair in zip(named, every, strict=True)]
    own_words = wanted.preset.closed_form or text.at_ports
    # Of aliases that are still to be found nothing is known.
    unread = [
        bool(ask or left) if wanted.find_aliases else not text.knows(concept, own_words)
        for concept, ask, left in zip(concepts, asked, steps, strict=True)
    ]
    reading = in_time(text, clip, plan.captions) if plan.captions else None
    captions = reading.count if reading else 0
    # Read once with the concepts' own prompts, and kept as they are.
    near, asks = 0, [len(own) for own, ask in zip(tried, asked, strict=False) if ask]
    if wanted.keep_near:
        # Those that hold an alias which is still to be found are not known.
        names = longer_names_to_try(encoder, shown, asking, captions_held_by(wanted.prior), tried)
        unsaid = unasked(model, encoder, images, names, asking)
        asks += [len(own) for own, ask in zip(names, unsaid, strict=True) if ask]
        if any((*asked, *unread, *unsaid)) or not has_read_preserved(text):
            near = prompts_to_keep(concepts, len(concepts) * asking.neighbours + sum(map(len, names)))
    prompts = 2 * sum(len(own.readings) for own, new in zip(concepts, unread, strict=True) if new)
    looked_at = min(asking.pictures, drawing["count"])
    # Without guidance there is no prediction for the negative prompt.
    a_picture = drawing["steps"] * (1 if drawing["cfg"] == 1 else 2)
    parts = {
        PICTURES: (0, undrawn * drawing["count"] * a_picture),
        OTHER_WORDS: (sum(asks), sum(predictions_of(count, looked_at) for count in asks)),
        READING: (captions + near + prompts, 0),
        TRAINING: (0, TRAINED * sum(steps)),
        COMPARING: (0, 2 * COMPARED * a_picture if wanted.compared else 0),
    }
    if not any(map(any, parts.values())):
        return Estimate({}, (), named)
    predicts = any(predictions for _, predictions in parts.values())
    drawn = [fill(template, concepts[0].target) for template in concepts[0].prompts] if predicts else []
    speed = measure_speed(model, clip, text, drawn, wanted.width, wanted.height)
    found = estimated(speed, parts, model, clip, drawing["count"] if undrawn else COMPARED, any(steps))
    advice = reading.lines if reading else []
    if captions and not advice:
        advice = [f"{captions} captions are read: a Prior with fewer, saved, is quicker"]
    new = sum(map(bool, steps))
    left = f"{new} of {len(concepts)} concepts are to be trained" if new else "nothing is to be trained"
    return replace(found, lines=[f"{left}, {found.lines[0]}", *found.lines[1:], *advice], plans=named)


def prompts_to_keep(concepts: Sequence[Concept], words: int) -> int:
    """At most how many prompts are read for what `kept_beside` keeps. words: that the model is asked of for it."""
    kinds = {concept.type for concept in concepts}
    near = Concept("", "", next(iter(kinds)) if len(kinds) == 1 else "object")
    listed = sum(len(names) * len(Concept("", "", kind).prompts) for kind, names in RETENTION.values() if kind in kinds)
    return words * len(near.prompts) + listed


def planned(model, clip, concepts: tuple[Concept, ...], plan: Plan, pictures: Sequence[str]) -> list[str]:
    """What the LoRA of each concept depends on, as far as it is known before anything is drawn or read.

    pictures: what those of each concept depend on, see `kept_images`.
    """
    wanted, text = plan.wanted, TextEncoder(clip)
    prior = wanted.prior.digest if wanted.prior else None
    if plan.captions:
        prior = in_time(text, clip, plan.captions).source
    preset = wanted.preset.refine, wanted.preset.lambda1_squared
    about = content_sha256(training_key(model), *preset, wanted.find_aliases, wanted.keep_near, prior)
    named = []
    for concept, key in zip(concepts, pictures, strict=True):
        words = text.content(*concept.phrases, concept.mapping)
        record = plan.training.record(concept.type, plan.drawing["count"])
        named.append(content_sha256(about, key, words, concept, concept.prompts, record))
    return named
