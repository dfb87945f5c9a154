"""Ways to erase a list of concepts: MACE's stages, and the baselines by their nodes."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property

from benchmarks.erasure.baselines import BASELINES
from benchmarks.erasure.bench import NAIVE, Bench, Work

BASE, REFINED, FUSED, SUM = "base", "refined", "fused", "naive"
# The refinement where no LoRA follows: it moves the concepts' own words too.
ALONE = "own words"
# The same, with what the model does not take for an alias kept, where it was asked.
NEAR_KEPT = "own words, near kept"
STAGES = (REFINED, FUSED, SUM)
METHODS = (*STAGES, ALONE, NEAR_KEPT, *BASELINES)


class Subject:
    """One erasure, made once and only as far as it is asked for.

    objects: names.  style: whether Twemoji goes too.  aliases: whether the names carry their synonyms.  found: whether
    they get the aliases that the model itself tells.
    """

    def __init__(
        self, bench: Bench, objects: Sequence[str], style: bool = False, aliases: bool = False, found: bool = False
    ):
        self.bench, self.objects, self.style, self.aliases, self.found = bench, tuple(objects), style, aliases, found
        self._spent: dict[str, float] = {}

    @cached_property
    def work(self) -> Work:
        """The refinement, and what training needs."""
        return self.bench.prepare(self.objects, self.style, self.aliases, self.found)

    def trained(self) -> Work:
        """The same with LoRAs, by the preset."""
        if self.work.loras is None:
            self.bench.train(self.work)
        return self.work

    def model(self, method: str) -> tuple[object, Mapping]:
        """(MODEL, what to draw with besides: see `Studio.draw`)."""
        if method == BASE:
            return self.bench.model, {}
        if method == REFINED:
            return self.work.refined, {}
        if method == ALONE:
            alone = self.bench.prepare(self.objects, self.style, self.aliases, self.found, own_words="on")
            self._spent[method] = alone.seconds["refine"]
            return alone.refined, {}
        if method == NEAR_KEPT:
            work, weight = replace(self.work, seconds={}), self.bench.host.module("nodes.stages.keeping").NAMED_WEIGHT
            self.bench.refine(work, own_words="on", prior=self.bench.keeping(work.near), lambda3=repr(weight))
            self._spent[method] = work.seconds["refine"]
            return work.refined, {}
        if method == FUSED:
            return self.bench.fuse(self.trained()), {}
        if method == SUM:
            return self.bench.fuse(self.trained(), NAIVE), {}
        work, start = Work(self.bench.concepts(self.objects, self.style), seconds={}), time.perf_counter()
        made = BASELINES[method](self.bench, work, method)
        self._spent[method] = time.perf_counter() - start
        return made

    def seconds(self, method: str) -> Mapping[str, float]:
        """By stage, what the method took on the way from the concepts to its model."""
        if method == BASE:
            return {}
        if method in self._spent:
            asked = ("images and masks", "find aliases") if self.found else ()
            return {**{name: self.work.seconds[name] for name in asked}, "all": self._spent[method]}
        needed = ("refine", "images and masks", "find aliases") if self.found else ("refine",)
        return {name: value for name, value in self.work.seconds.items() if method != REFINED or name in needed}
