"""Find Aliases: other words that the model draws a concept with, to be erased together with it."""

import time
from dataclasses import asdict

from comfy_api.latest import io, ui

from ...mace.concepts.concept import ConceptList, as_lines, one_preset
from ...mace.concepts.notation import written
from ...mace.concepts.subjects import parse_chosen, parse_names
from ...mace.concepts.text import TextError
from ..host.progress import duration, send_text
from ..schema import ERASE, ConceptsType, ImagesType, PriorType, seed_input
from ..stages.alias_choice import draw_candidates, small
from ..stages.alias_search import find_aliases
from ..stages.alias_words import AliasSettings
from ..stages.keeping import captions_held_by


class FindAliases(io.ComfyNode):
    """Asks the model which words explain a concept's pictures as its own words do."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MACE_FindAliases",
            display_name="Find Aliases (MACE)",
            category=ERASE,
            description="Finds other words that draw the same thing (hart and stag for deer) and erases them with it. "
            "The model is asked itself: a word is an alias when it explains the concept's pictures as the concept's "
            "own words do. Stands between Concept Images and everything behind it.",
            search_aliases=["mace", "synonyms", "aliases", "words", "diffusion classifier"],
            inputs=[
                io.Model.Input("model", tooltip="The model to erase from, before CFR Refine."),
                io.Clip.Input("clip", tooltip="Its text encoder."),
                ImagesType.Input("images", tooltip="From Concept Images, with the concepts they are of."),
                io.String.Input(
                    "words",
                    multiline=True,
                    dynamic_prompts=False,
                    default="",
                    placeholder="(the nearest words of the text encoder)",
                    tooltip="Few words of your own are tried in less time: words and phrases, one a line or with "
                    "commas between. Empty: the words of the text encoder's vocabulary that lie nearest to the "
                    "concept.",
                ),
                io.String.Input(
                    "keep",
                    multiline=True,
                    dynamic_prompts=False,
                    default="",
                    placeholder="hot dog, wolf",
                    tooltip="Words that never become an alias, one a line or with commas between.",
                ),
                io.Int.Input(
                    "nearest",
                    default=300,
                    min=1,
                    max=5000,
                    tooltip="More finds rarer words and takes longer: how many of the nearest words are tried when "
                    "words is empty.",
                ),
                io.Float.Input(
                    "threshold",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Larger takes fewer and surer words: what a word must explain of what the concept's own "
                    "words explain. On the demo model synonyms explain 58 to 97 %, other words up to 33 %; other "
                    "models are not measured: look at the words that came next.",
                ),
                io.Int.Input(
                    "most",
                    default=8,
                    min=1,
                    max=64,
                    advanced=True,
                    tooltip="Larger erases more words with a concept, smaller leaves more of them: the most aliases "
                    "added to one.",
                ),
                io.Int.Input(
                    "pictures",
                    default=4,
                    min=1,
                    max=64,
                    advanced=True,
                    tooltip="More makes the shares steadier and takes longer: how many of a concept's pictures are "
                    "looked at, each at three levels of noise.",
                ),
                seed_input("Seed of the noise.", 2**64 - 1, advanced=True),
                io.Int.Input(
                    "neighbours",
                    default=8,
                    min=0,
                    max=64,
                    optional=True,
                    advanced=True,
                    tooltip="More keeps more of what lies next to a concept: how many near words that are no aliases "
                    "are offered to be kept, for each, and as many names of other things that hold its word (hot dog "
                    "for dog). 0: only what was found and not chosen.",
                ),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="Its VAE, for a small picture of each candidate. Without it none are drawn.",
                ),
                io.Int.Input(
                    "thumbnails",
                    default=8,
                    min=0,
                    max=16,
                    optional=True,
                    tooltip="More shows more of what the words draw and takes longer, eight steps for each: how many "
                    "of each concept's candidates are drawn small, the best first, where a VAE is connected. 0: none.",
                ),
                io.String.Input(
                    "chosen",
                    multiline=True,
                    dynamic_prompts=False,
                    default="",
                    optional=True,
                    placeholder="(what the model found)",
                    tooltip="The aliases that you chose, one concept a line: deer | stag, hart. The boxes below, which "
                    "stand there once the node has run, write it. A concept without a line takes what the model found, "
                    "one with its name alone takes none. A line * | wolf names the near words that go to neighbours; "
                    "without it all do. A change searches no aliases anew.",
                ),
                PriorType.Input(
                    "prior",
                    optional=True,
                    tooltip="The prior to erase with: names that hold an erased word (hot dog) are looked for among "
                    "its captions, which would be taken out with it. Without: among built-in captions.",
                ),
            ],
            outputs=[
                ConceptsType.Output("concepts", tooltip="The concepts with the aliases found, for CFR Refine."),
                ImagesType.Output("images", tooltip="The same images with these concepts, for masks and training."),
                io.String.Output("lines", tooltip="The concepts as text, as the node Concepts takes it."),
                io.String.Output(
                    "neighbours",
                    tooltip="Near words that are no aliases (wolf for dog), and those of keep, one a line: for "
                    "preserve of Prior, so that they stay.",
                ),
            ],
            has_intermediate_output=True,
        )

    @classmethod
    def validate_inputs(cls, words=None, keep=None, chosen=None):
        try:
            parse_names(words or "", "words")
            parse_names(keep or "", "keep")
            parse_chosen(chosen or "")
        except TextError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls,
        model,
        clip,
        images,
        words,
        keep,
        nearest,
        threshold,
        most,
        pictures,
        seed,
        neighbours=8,
        vae=None,
        thumbnails=8,
        chosen="",
        prior=None,
    ) -> io.NodeOutput:
        settings = AliasSettings(words, keep, nearest, threshold, most, pictures, seed, neighbours, chosen)
        start = time.perf_counter()
        found = find_aliases(model, clip, images, settings, captions_held_by(prior))
        times = [time.perf_counter() - start]
        shown, drawn = [{} for _ in images], 0
        if vae is not None and thumbnails:
            shown, drawn = draw_candidates(model, clip, vae, images, found.candidates, thumbnails, found.seconds)
            times.append(time.perf_counter() - start - times[0])
        took = [f"asked in {duration(times[0])}"] if found.seconds is not None else []
        took += [f"{drawn} small pictures drawn in {duration(times[1])}"] if drawn else []
        took = ", ".join(took) or "nothing was asked or drawn anew"
        send_text(took)
        told = [*found.lines, f"near, and no aliases: {', '.join(found.neighbours) or 'nothing'}", took]
        as_text = as_lines(found.concepts)
        preset = one_preset(entry.preset for entry in images)
        return io.NodeOutput(
            ConceptList(found.concepts, preset),
            found.images,
            as_text,
            "\n".join(map(written, found.neighbours)),
            ui={
                "text": ("\n".join(told),),
                "candidates": cls._offered(images, found.candidates, shown),
                "near": [asdict(own) for own in found.near],
            },
        )

    @classmethod
    def _offered(cls, images, candidates, pictures) -> list[dict]:
        """For the page: each concept with its own picture and its candidates, with theirs where they were drawn."""

        def saved(picture) -> dict:
            return ui.PreviewImage(picture[None], cls=cls).as_dict()["images"][0]

        return [
            {
                "concept": entry.concept.target,
                "picture": saved(small(entry.pictures[0])),
                "words": [
                    {**asdict(own), "picture": saved(shown[own.word]) if own.word in shown else None} for own in offered
                ],
            }
            for entry, offered, shown in zip(images, candidates, pictures, strict=True)
        ]
