"""One command on a cluster: what is a sum over concepts, and what each concept trains, is done by workers; the rest
here, by the same stages and nodes as without them."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from .folder import Folder, as_bytes, opened, read
from .plain import training_to
from .pool import Outcome, Pool
from .units import LORAS, MOMENTS, VERSION, Unit, units_of

# Failed units that an error names.
NAMED = 3


class UnitsFailed(RuntimeError):
    """Units that failed however often they were tried; the message names concepts and the last error."""


class OnCluster:
    """model: the key of the model's files.  count: workers asked for."""

    def __init__(self, session, pool: Pool, folder: Folder, model: str, count: int):
        self.session, self.pool, self.folder, self.model, self.count = session, pool, folder, model, count
        self.outcomes: list[Outcome] = []
        self._sent = 0
        self._module = session.host.module

    def report(self) -> dict:
        """What the workers did, for the command's report."""
        kinds = {
            kind: {
                state: sum(outcome.state == state for outcome in own)
                for state in ("before", "now", "elsewhere", "failed")
            }
            for kind in (MOMENTS, LORAS)
            if (own := [outcome for outcome in self.outcomes if outcome.unit.kind == kind])
        }
        ours = [outcome for outcome in self.outcomes if outcome.state == "now"]
        return {
            "address": self.session.options.ray,
            "workers": self.count,
            "workers_lost": self.pool.lost,
            "folder": str(self.folder.path),
            "units": kinds,
            "unit_seconds": {
                kind: [round(outcome.seconds, 3) for outcome in ours if outcome.unit.kind == kind] for kind in kinds
            },
            "bytes": sum(outcome.bytes for outcome in ours),
            "bytes_sent": self._sent,
            "failed": [
                {"kind": outcome.unit.kind, "concepts": outcome.unit.targets, "error": outcome.error}
                for outcome in self.outcomes
                if outcome.state == "failed"
            ],
        }

    def estimated(self, concepts: Sequence, wanted: dict, size: int, captions) -> tuple[dict[str, float], list[str]]:
        """(seconds by part, lines) of an erasure on these workers; measured on one of them, for its first concept.

        size: concepts of a unit.  captions: the `Reading` of those that are read here, None for none.
        """
        found = self.pool.estimate([asdict(concept) for concept in concepts], wanted)
        together = min(self.count, -(-len(concepts) // size))
        seconds = {name: own / together for name, own in found["seconds"].items()}
        if captions is not None and captions.count:
            part = self._module("nodes.stages.planning").READING
            seconds[part] = seconds.get(part, 0.0) + captions.seconds
        total = self._module("nodes.host.progress").duration(sum(seconds.values()))
        return seconds, [
            f"{len(concepts)} concepts on {together} workers, {total} at most",
            *found["lines"][1:],
            *(captions.lines if captions else ()),
        ]

    @contextlib.contextmanager
    def moments(self, loaded, concepts, pooled: bool = True, own_words: bool | None = None) -> Iterator:
        """The concepts, whose moments any text has at hand meanwhile: workers read them. Fewer where units failed and
        --partial is given. pooled, own_words: as in `refine_model`. Raises UnitsFailed."""
        text, weights = self._module("nodes.host.pipeline").text_and_weights(loaded.model, loaded.clip)
        how = {
            "pooled": pooled and bool(weights.pooled),
            "own_words": text.at_ports if own_words is None else own_words,
        }
        units = units_of(
            MOMENTS, concepts, self.session.options.unit_moments, lambda some: self._key(MOMENTS, some, how)
        )
        self._run(MOMENTS, units, lambda unit: (unit.kind, unit.key, list(unit.concepts), how))
        places = self._places(units)
        kept = self._kept(concepts, places)
        sources = self._module("nodes.host.kept.store").moment_sources

        def source(concept, asked_pooled: bool, asked_own_words: bool):
            if concept not in places or asked_own_words != how["own_words"] or asked_pooled > how["pooled"]:
                return None
            found = self._moments_in(*places[concept])
            return found if asked_pooled else replace(found, pooled=None)

        sources.append(source)
        try:
            yield kept
        finally:
            sources.remove(source)

    def loras(self, concepts: Sequence, refinement, how: dict, options):
        """(LoraSet of the concepts, without moments; lines for the artist): pictures, masks and training by workers.

        how: prompt, negative, drawing, backend and masks, as the stages take them.  options: TrainOptions. Raises
        UnitsFailed.
        """
        size = self.session.options.unit_loras
        training = training_to(replace(options, side_by_side=options.side_by_side or size), {c.type for c in concepts})
        how = {**how, "training": training}
        prior = refinement.prior
        refined = [dict(refinement.settings), refinement.strength, refinement.projections, refinement.own_words]
        # As LoRAs are kept by in one process too: how it was refined, not for which other concepts, so that a list may
        # grow without training all of it again. What each was trained on is in its file, and told where it differs.
        refined += [prior and prior.digest, refinement.clip_layer, refinement.pooled_delta is not None]

        def key_of(some: Sequence) -> str:
            rows = {kind: row for kind, row in training["rows"].items() if kind in {c.type for c in some}}
            same = {**training["same"], "again": False}
            return self._key(LORAS, some, {**how, "training": {**training, "same": same, "rows": rows}}, refined)

        blob = as_bytes(*self._module("mace.formats.recipe_file").refinement_to_file(refinement))
        ref = self.pool.shared(blob)
        units = units_of(LORAS, concepts, size, key_of)
        for unit in units if options.again else ():
            self.folder.forget(unit)
        outcomes = self._run(LORAS, units, lambda unit: (unit.kind, unit.key, list(unit.concepts), how, ref))
        self._sent += len(blob) * min(self.count, sum(outcome.state == "now" for outcome in outcomes))
        module = self._module("mace.formats.lora_set_file")
        sets = [module.set_from_file(*read(self.folder.file(own.unit))) for own in outcomes if own.done]
        found = [lora for own in sets for lora in own.loras]
        self._kept(concepts, {lora.concept: lora for lora in found})
        lora_set = self._module("mace.formats.lora_set")
        digest = lora_set.refinement_digest(refinement)
        recipe = lora_set.recipe_of(refinement, digest)
        counts = [f"{sum(o.state == state for o in outcomes)} {state}" for state in ("now", "before", "elsewhere")]
        lines = [f"{len(found)} LoRAs in {len(units)} units: {', '.join(counts)}"]
        elsewhere = [lora.concept.target for lora in found if lora.refined_on != digest]
        if elsewhere:
            lines.append(f"trained when the list was another one, and kept: {', '.join(elsewhere)}")
        lines += [self._module("nodes.stages.train").loss_line(lora) for lora in found]
        return lora_set.LoraSet(tuple(found), recipe, sets[0].blocks, sets[0].base), lines

    def _key(self, kind: str, concepts: Sequence, *how) -> str:
        content = self._module("nodes.host.kept.content")
        version = (VERSION, self._module("mace").__version__)
        return content.content_sha256(version, kind, self.model, [(c, c.readings) for c in concepts], *how)

    def _run(self, kind: str, units: list[Unit], given: Callable) -> list[Outcome]:
        title = {MOMENTS: "Moments", LORAS: "Pictures, masks and LoRAs"}[kind]
        with self.session.timed(f"cluster {kind}", f"{title}, on {self.count} workers") as entry:
            outcomes = self.pool.run(units, self.folder, given, self.session.progress.step)
            counts = {o.state: sum(own.state == o.state for own in outcomes) for o in outcomes}
            entry["text"] = [f"{len(units)} units: " + ", ".join(f"{count} {state}" for state, count in counts.items())]
        self.outcomes += outcomes
        failed = [outcome for outcome in outcomes if outcome.state == "failed"]
        for outcome in failed:
            self.session.progress.warn(f"{outcome.unit.name}: {outcome.error}")
        if failed and (not self.session.options.partial or len(failed) == len(outcomes)):
            named = "; ".join(f"{outcome.unit.name}: {outcome.error}" for outcome in failed[:NAMED])
            raise UnitsFailed(f"{len(failed)} of {len(units)} units failed, the others are kept: {named}")
        return outcomes

    def _places(self, units: Sequence[Unit]) -> dict:
        """(result's file, place in it) of every concept that has one."""
        found = {}
        shard = self._module("mace.formats.moments_file")
        done = {outcome.unit.key for outcome in self.outcomes if outcome.done}
        for unit in units:
            if unit.key in done:
                path = self.folder.file(unit)
                with opened(path) as (_, _, metadata):
                    found |= {concept: (path, place) for place, concept in enumerate(shard.shard_concepts(metadata))}
        return found

    def _moments_in(self, path: Path, place: int):
        with opened(path) as (names, tensor, metadata):
            own = {name: tensor(name) for name in names if name.startswith(f"{place}.")}
            return self._module("mace.formats.moments_file").shard_moments(own, metadata, place)

    def _kept(self, concepts, found):
        """The concepts of a list for which there is a result, as the list's own kind."""
        kept = [concept for concept in concepts if concept in found]
        if len(kept) < len(concepts):
            without = ", ".join(concept.target for concept in concepts if concept not in found)
            self.session.progress.warn(f"left out, for their units failed: {without}")
        concept = self._module("mace.concepts.concept")
        return concept.ConceptList(kept, concept.preset_of(concepts))
