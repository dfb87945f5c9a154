"""The commands' stages on a cluster: the same settings of the same nodes, with what workers do taken out of them."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from mace.concepts.notation import written

from ..errors import BadInput
from ..models import files_of
from ..places import PACK
from ..settings import REFINE
from .connect import connected, how_many
from .driver import OnCluster
from .folder import Folder
from .plain import files_to, model_key
from .pool import Pool

# Those of Mask Concept's widgets that every back-end has.
MASK_SETTINGS = ("grow", "feather", "min_area", "nothing_found")


@contextlib.contextmanager
def on_cluster(session) -> Iterator["Clustered"]:
    """A session's cluster, with its workers; they end with it, and its claims are given back. Raises BadInput."""
    import comfy.model_management

    options, host = session.options, session.host
    files = files_of(host, options)
    with connected(options.ray, options.ray_workers) as ray:
        count = how_many(ray.cluster_resources(), options.ray_workers)
        key = model_key(files)
        where = Path(options.shared).expanduser().absolute() if options.shared else None
        folder = Folder(where or Path(host.folder_paths.get_user_directory()) / "mace" / "units")
        folder.tidy()
        opening = {**host.opened_as, "files": files_to(files), "model": key, "folder": where and str(where)}
        check = comfy.model_management.throw_exception_if_processing_interrupted
        pool = Pool(ray, PACK, opening, count, session.progress.cluster, check)
        found = Clustered(session, pool, folder, key, count)
        try:
            yield found
        finally:
            pool.close()
            folder.close()
            session.result["cluster"] = found.report()


class Clustered(OnCluster):
    """The commands' parts."""

    def estimate(self, loaded, concepts, settings: dict, plan) -> tuple[dict[str, float], list[str]]:
        """(seconds by part, lines) of an erasure. settings: of Erase Concepts.  plan: how it is done, see `Plan`."""
        names = ("width", "height", "seed", "strengths", "find_aliases", "preset")
        wanted = {**{name: settings[name] for name in names}, "lean": settings["gentle_strong"]}
        module, options, captions = self.session.host.module, self.session.options, None
        if plan.captions:
            text, _ = module("nodes.host.pipeline").text_and_weights(loaded.model, loaded.clip)
            captions = module("nodes.stages.captions").in_time(text, loaded.clip, plan.captions)
        size = options.unit_loras if plan.training else options.unit_moments
        return self.estimated(concepts, wanted, size, captions)

    def erase(self, loaded, concepts, settings: dict, prior):
        """(erased MODEL, LoraSet or None) as Erase Concepts gives them. settings: its widgets."""
        session = self.session
        stage, concept = (session.host.module(name) for name in ("nodes.stages.erasing", "mace.concepts.concept"))
        presets = session.host.module("mace.presets.presets")
        preset = session.host.module("nodes.host.preset_files").find_preset(settings["preset"])
        # As the node names it in what it writes.
        concepts = concept.ConceptList(concepts, "" if settings["preset"] == presets.PAPER else settings["preset"])
        given = {name: settings[name] for name in ("width", "height", "seed", "strengths")}
        wanted = stage.Wanted(preset=preset, **given, prior=prior, lean=settings["gentle_strong"])
        with torch.inference_mode():
            if not stage.trains(loaded.model, preset):
                with (
                    self.moments(loaded, concepts, own_words=preset.own_words) as kept,
                    session.timed("refinement", "Refinement") as entry,
                ):
                    erased = stage.by_closed_form(loaded.model, loaded.clip, loaded.vae, kept, wanted)
                    entry["text"] = erased.lines
                return erased.model, None
            stage.check_vae(loaded.vae)
            with self.moments(loaded, concepts) as kept, session.timed("refinement", "Refinement") as entry:
                found = stage.refine_as_preset(loaded.model, loaded.clip, kept, preset, prior)
                _, refinement, entry["text"], prior = found
            how = {"prompt": "auto", "negative": "", "drawing": stage.drawn_with(wanted), "backend": stage.ATTENTION}
            options = stage.preset_training(wanted)
            loras, lines = self.loras(kept, refinement, {**how, "masks": {}}, options)
            with session.timed("fusion", "Fusion") as entry:
                wanted = replace(wanted, strengths=_without_untrained(session, wanted.strengths, kept, loras))
                fused, about, moved, _ = stage.fuse_as_preset(
                    loaded.model, loaded.clip, loras, refinement, prior, wanted
                )
                entry["text"] = [*moved, *stage.in_parts({"Training": lines, "Fusion": about})]
        return fused, loras

    def refine(self, loaded, concepts, settings: dict, prior):
        """The outputs of CFR Refine, whose settings these are, and the concepts that it has."""
        module, concept = (self.session.host.module(name) for name in ("nodes.erase.refine", "mace.concepts.concept"))
        own_words = module.moves_own_words(settings["own_words"], module.find_preset(concept.preset_of(concepts)))
        with self.moments(loaded, concepts, settings["pooled_text"], own_words) as kept:
            found = self.session.run(
                REFINE, **settings, model=loaded.model, clip=loaded.clip, concepts=kept, prior=prior
            )
        return found, kept

    def train(self, loaded, concepts, refining: dict, drawing: dict, masking: dict, settings: dict, prior):
        """The LoraSet of Train Erasure LoRA behind its nodes, by the settings of each."""
        session = self.session
        if not session.host.module("nodes.stages.erasing").is_unet(loaded.model):
            raise BadInput("--model: no LoRA is trained for this kind of model; erase and refine take it")
        found, kept = self.refine(loaded, concepts, refining, prior)
        module, concept = session.host.module("nodes.erase.train"), session.host.module("mace.concepts.concept")
        settings, drawing = dict(settings), dict(drawing)
        name = settings.pop("preset")
        if name == module.OF_CONCEPTS:
            name = concept.preset_of(kept)
        options = module.read_training(module.find_preset(name), **settings)
        how = {"prompt": drawing.pop("prompt"), "negative": drawing.pop("negative"), "drawing": drawing}
        how |= {"backend": masking["backend"], "masks": {name: masking[name] for name in MASK_SETTINGS}}
        with torch.inference_mode():
            loras, lines = self.loras(kept, found[1], how, options)
        session.stages[-1]["text"] += lines
        return with_moments(loras, found[1])


def _without_untrained(session, strengths: str, concepts, loras) -> str:
    """Strengths at which concepts whose LoRA could not be trained leave the sums."""
    trained = set(loras.concepts)
    if trained == set(concepts):
        return strengths
    own = session.host.module("mace.concepts.strengths").strengths_of(strengths, concepts)
    return "\n".join(
        f"{written(concept.target)} = {strength if concept in trained else 0:g}"
        for concept, strength in zip(concepts, own, strict=True)
    )


def with_moments(loras, refinement):
    """A LoraSet with the moments of its concepts, as training in one process gives it."""
    own = dict(zip(refinement.concepts, refinement.moments, strict=True))
    return replace(loras, loras=tuple(replace(lora, moments=own.get(lora.concept)) for lora in loras.loras))
