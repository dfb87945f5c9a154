"""Fusion of erasure LoRAs into the weights: the closed form of Eq. 7, and the weighted sum of Eq. 6.

With M = sum_i S_i + l2 P + l3 D + mu I, the minimiser of Eq. 7 for a projection W, refined to W' = W T, is

    W* = [W T (sum_i S_i + mu I) + W (l2 P + l3 D) + sum_i s_i B_i A_i S_i] M^-1
    W* - W = W (T - I)(sum_i S_i + mu I) M^-1  +  sum_i B_i (s_i A_i S_i M^-1)

where concept i's LoRA is B_i A_i. The first term is one d x d matrix for all projections; the second has one row of
length d for each rank of each LoRA. All of them share M, so there is one factorisation a model. The strengths s_i
scale the targets (T is T(s), see `refine`), not the moments, and sums run over the concepts with s_i > 0. Another
metric R than the paper's I (see `reading`) stands in its place, in T and here.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .lora import Lora
from .moments import unpack, working_device
from .refine import RefineWeights, add_scaled_metric, factorise, refinement, solve_rows, weight_delta
from .sums import Moments, total_sum

TO_REFINED = "refined"
TO_BASE = "base"
ALL_TO_REFINED = "all refined"
PULLS = (TO_REFINED, TO_BASE, ALL_TO_REFINED)
# Ranks of one projection's LoRAs that are kept as they are.
MOST_STACKED = 128


@dataclass(frozen=True)
class FuseWeights:
    """The weights of Eq. 7: lambda2 of the general prior, lambda3 of the concepts to preserve, mu of
    ||W* - W'||^2. All are >= 0 and without unit.

    pull: where mu draws W* to; "refined" is W', as the published release has it, "base" is W. "all refined": lambda2
    and lambda3 too hold what is kept as W' reads it, and not as W does. Then W* - W' is the LoRAs' part alone, and a
    larger lambda2 takes W* to W', where Eq. 7's own takes it back to W.
    """

    lambda2: float = 0.0
    lambda3: float = 0.0
    mu: float = 0.0
    pull: str = TO_REFINED

    def __post_init__(self):
        if not all(0.0 <= w < float("inf") for w in (self.lambda2, self.lambda3, self.mu)):
            raise ValueError("lambda2, lambda3 and mu must be finite and not negative")
        if self.pull not in PULLS:
            raise ValueError(f'pull is "{TO_REFINED}", "{TO_BASE}" or "{ALL_TO_REFINED}", not "{self.pull}"')


@dataclass(frozen=True)
class Fusion:
    """W* - W of every projection: W @ shared + B @ rows.

    shared: [d, d] float64.  stacks: by projection the LoRAs' (B [d_out, R] float32, rows [R, d] float64), stacked
    over the concepts; a projection that no LoRA has is not there, and changes by `shared` alone.  products: B @ rows
    [d_out, d] float32 in place of the two, where the list is so long that they are larger.
    """

    shared: Tensor
    stacks: Mapping[str, tuple[Tensor, Tensor]]
    products: Mapping[str, Tensor] = field(default_factory=dict)

    def __contains__(self, key: str) -> bool:
        """Whether a LoRA changes this projection."""
        return key in self.stacks or key in self.products

    def delta(self, key: str, weight: Tensor, refined: bool = True) -> Tensor:
        """W* - W of the projection W [d_out, d] named `key`, as float32 products on the weight's device.

        refined: whether the refinement covers this projection; where it does not (keys only, say), W' = W and the
        LoRAs' part is all. The weight stays as it is. Raises ValueError for a weight of another shape than the LoRAs'.
        """
        if weight.shape[-1] != len(self.shared):
            raise ValueError(f"{key} reads embeddings {weight.shape[-1]} wide, the concepts' are {len(self.shared)}")
        change = weight_delta(weight, self.shared) if refined else torch.zeros_like(weight, dtype=torch.float32)
        if key in self.stacks:
            up, rows = self.stacks[key]
            if len(up) != len(weight):
                raise ValueError(f"{key} has {len(weight)} rows, its LoRAs {len(up)}: they are of another model")
            change += up.to(weight.device) @ rows.float().to(weight.device)
        if key in self.products:
            if len(self.products[key]) != len(weight):
                raise ValueError(f"{key} has {len(weight)} rows, its LoRAs {len(self.products[key])}: of another model")
            change += self.products[key].to(weight.device)
        return change


def fuse(
    moments: Moments,
    loras: Sequence[Lora],
    refine_weights: RefineWeights,
    fuse_weights: FuseWeights,
    prior: Tensor | None = None,
    preserve: Tensor | None = None,
    strengths: Sequence[float] | None = None,
    device: torch.device | None = None,
    metric: Tensor | None = None,
) -> Fusion:
    """Eq. 7's W* - W, from the original W (not from W').

    moments and loras: one a concept; a concept without a LoRA has an empty mapping. prior: P, preserve: D, both
    [d, d] float64 or None. strengths: one a concept in 0..1, default all 1; a concept at 0 leaves the sums. device:
    where to solve, default the CPU. metric: R, see `reading`; None for the paper's I. A change of strengths or weights
    is this solve again, and nothing more.

    Raises ValueError for counts that differ, a strength out of range, all strengths 0 (there is nothing to fuse),
    a LoRA that does not fit or is not finite; SingularSystem for a system without a stable solution.
    """
    if len(moments) != len(loras):
        raise ValueError(f"{len(loras)} LoRAs for {len(moments)} concepts")
    active = _active(loras, strengths)
    width = moments[0].width
    for i, _ in active:
        _check(loras[i], i, width)
    transform_delta = refinement(moments, refine_weights, prior, preserve, strengths, device, metric)
    where = working_device(device or torch.device("cpu"))

    system = unpack(total_sum(moments, [1.0] * len(moments) if strengths is None else strengths, where))
    # What is in the system when the refined weights' part is made is held as W' reads it, the rest as W does.
    if fuse_weights.pull != TO_BASE:
        add_scaled_metric(system, fuse_weights.mu, metric)
    block = transform_delta @ system
    if fuse_weights.pull == TO_BASE:
        add_scaled_metric(system, fuse_weights.mu, metric)
    for weight, moment in ((fuse_weights.lambda2, prior), (fuse_weights.lambda3, preserve)):
        if weight and moment is not None:
            system += weight * moment.to(where)
    factor = factorise(system, "lambda2")
    gathered = _Gathered(loras, active, width)
    for i, strength in active:
        if loras[i]:
            packed = moments[i].total.to(where)
            downs = torch.cat([down.to(packed) for _, down in loras[i].values()])
            rows = solve_rows(strength * downs @ unpack(packed), factor)
            gathered.add(loras[i], rows)
    # Where all of the system is held as W' reads it, its part is W T - W itself.
    shared = transform_delta if fuse_weights.pull == ALL_TO_REFINED else solve_rows(block, factor).contiguous()
    return Fusion(shared, *gathered.found())


class _Gathered:
    """The fused LoRAs by projection: stacks [d_out, R] and [R, d], or their products where those are smaller."""

    def __init__(self, loras: Sequence[Lora], active: Sequence[tuple[int, float]], width: int):
        ranks: dict[str, int] = {}
        rows: dict[str, int] = {}
        for i, _ in active:
            for key, (up, down) in loras[i].items():
                if rows.setdefault(key, len(up)) != len(up):
                    raise ValueError(f"{key}: LoRAs with {rows[key]} and {len(up)} rows are of different models")
                ranks[key] = ranks.get(key, 0) + len(down)
        # Four bytes a number of B and of the product, eight of the rows. Short lists keep what is exact.
        self._products = {
            key: torch.zeros(rows[key], width)
            for key, rank in ranks.items()
            if rank > MOST_STACKED and rank * (4 * rows[key] + 8 * width) > 4 * rows[key] * width
        }
        self._entries: list[tuple[str, Tensor, Tensor]] = []

    def add(self, lora: Lora, rows: Tensor) -> None:
        """One concept's rows [R, d], of its projections in order."""
        parts = rows.split([len(down) for _, down in lora.values()])
        for (key, (up, _)), own in zip(lora.items(), parts, strict=True):
            if key in self._products:
                self._products[key].addmm_(up.to("cpu", torch.float32), own.to("cpu", torch.float32))
            else:
                self._entries.append((key, up, own))

    def found(self) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, Tensor]]:
        """(stacks, products) by projection."""
        return _stack(self._entries), self._products


def naive(loras: Sequence[Lora], transform_delta: Tensor, strengths: Sequence[float] | None = None) -> Fusion:
    """Eq. 6's W' + sum_i omega_i B_i A_i - W, for comparison; omega_i = s_i / q.

    transform_delta: T(s) - I [d, d] of the same strengths (see `refine.refinement`). q counts the concepts with
    s_i > 0, so at strength 1 the omegas sum to 1. The result lies on transform_delta's device. Raises ValueError as
    `fuse` does.
    """
    active = _active(loras, strengths)
    for i, _ in active:
        _check(loras[i], i, len(transform_delta))
    entries = (
        (key, up.to(transform_delta.device), strength / len(active) * down.to(transform_delta))
        for i, strength in active
        for key, (up, down) in loras[i].items()
    )
    return Fusion(transform_delta, _stack(entries))


def _active(loras: Sequence[Lora], strengths: Sequence[float] | None) -> list[tuple[int, float]]:
    """(place, strength) of the concepts with a strength above 0."""
    strengths = [1.0] * len(loras) if strengths is None else list(strengths)
    if len(strengths) != len(loras):
        raise ValueError(f"{len(strengths)} strengths for {len(loras)} concepts")
    if not all(0.0 <= s <= 1.0 for s in strengths):
        raise ValueError("a strength lies outside 0..1")
    active = [(i, s) for i, s in enumerate(strengths) if s > 0]
    if not active:
        raise ValueError("no concept with a strength above 0: there is nothing to fuse")
    return active


def _check(lora: Lora, place: int, width: int) -> None:
    """Raise ValueError unless every pair of a LoRA is finite and is B [d_out, r], A [r, width]."""
    for key, (up, down) in lora.items():
        name = f"LoRA {place + 1}, {key}"
        if up.dim() != 2 or down.dim() != 2 or up.shape[1] != down.shape[0]:
            raise ValueError(f"{name}: {tuple(up.shape)} times {tuple(down.shape)} is no product of matrices")
        if down.shape[1] != width:
            raise ValueError(
                f"{name}: it reads embeddings {down.shape[1]} wide, the concepts' are {width}; it is of another model"
            )
        if not (torch.isfinite(up).all() and torch.isfinite(down).all()):
            raise ValueError(f"{name}: it holds values that are not finite (NaN or infinity); train it again")


def _stack(entries: Iterable[tuple[str, Tensor, Tensor]]) -> dict[str, tuple[Tensor, Tensor]]:
    """(key, B [d_out, r], rows [r, d]) of every LoRA, gathered by key as (B [d_out, R], rows [R, d])."""
    ups: dict[str, list[Tensor]] = {}
    rows: dict[str, list[Tensor]] = {}
    for key, up, own in entries:
        if key in ups and len(up) != len(ups[key][0]):
            raise ValueError(f"{key}: LoRAs with {len(ups[key][0])} and {len(up)} rows are of different models")
        ups.setdefault(key, []).append(up.to(own.device, torch.float32))
        rows.setdefault(key, []).append(own)
    return {key: (torch.cat(ups[key], dim=1), torch.cat(rows[key])) for key in ups}
