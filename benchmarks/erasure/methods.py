"""Ways to erase a list of concepts: MACE's stages, and the baselines by their nodes."""

from collections.abc import Mapping, Sequence
from functools import cached_property

from benchmarks.erasure.bench import NAIVE, Bench, Work

BASE, REFINED, FUSED, SUM = "base", "refined", "fused", "naive"
STAGES = (REFINED, FUSED, SUM)


class Subject:
    """One erasure, made once and only as far as it is asked for. objects: names; style: whether Twemoji goes too."""

    def __init__(self, bench: Bench, objects: Sequence[str], style: bool = False):
        self.bench, self.objects, self.style = bench, tuple(objects), style

    @cached_property
    def work(self) -> Work:
        """The refinement, and what training needs."""
        return self.bench.prepare(self.objects, self.style)

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
        if method == FUSED:
            return self.bench.fuse(self.trained()), {}
        if method == SUM:
            return self.bench.fuse(self.trained(), NAIVE), {}
        raise ValueError(f"{method} is not a method")

    def seconds(self, method: str) -> Mapping[str, float]:
        """By stage, what the method took on the way from the concepts to its model."""
        stages = {BASE: (), REFINED: ("refine",)}.get(method, tuple(self.work.seconds or ()))
        return {stage: self.work.seconds[stage] for stage in stages}
