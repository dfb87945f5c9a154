"""Automatic settings: Table 10 of the paper by type of concept, and how mixed lists share one solve."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from ..concepts.concept import Concept, normalised
from ..concepts.lists import TABLE10
from ..method.refine import RefineWeights

# With lambda1 alone the system of explicit content is nearly singular, and users of the published release got
# pure noise; the smallest identity weight of Table 10 steadies it.
EXPLICIT_MU = 0.1


def auto_weights(concepts: Sequence[Concept]) -> RefineWeights:
    """Table 10's lambda1, lambda3 and mu for a list of concepts, mixed types included.

    lambda1, lambda3: the largest among the types present (objects have none: Appendix C.2). lambda3 is
    interpolated in the logarithm of the number of concepts of the type and clamped to the table's ends. mu:
    the median over the objects, each with its class's value or, outside Table 10, the table's median (10);
    explicit content has at least EXPLICIT_MU. Raises ValueError for an empty list.
    """
    if not concepts:
        raise ValueError("there are no concepts to choose settings for")
    counts = Counter(concept.type for concept in concepts)
    rows = {kind: TABLE10[kind] for kind in counts}
    lambda1 = max(float(row.get("lambda1", 0.0)) for row in rows.values())
    lambda3 = max(
        interpolate_log(row["lambda3"], counts[kind]) if "lambda3" in row else 0.0 for kind, row in rows.items()
    )
    mus = [object_mu(concept.target) for concept in concepts if concept.type == "object"]
    mu = median(mus) if mus else 0.0
    return RefineWeights(lambda1, lambda3, max(mu, EXPLICIT_MU) if "explicit" in counts else mu)


def object_mu(target: str) -> float:
    """Table 10's identity weight of an object, or the table's median outside it."""
    table: Mapping[str, float] = TABLE10["object"]["identity"]
    return float(table.get(normalised(target), median(table.values())))


def interpolate_log(table: Mapping[int | str, float], count: int) -> float:
    """A value by number of concepts: linear in log(count) between the table's entries, clamped to its ends."""
    points = sorted((math.log(int(n)), float(value)) for n, value in table.items())
    x = math.log(count)
    for (x0, y0), (x1, y1) in zip(points, points[1:], strict=False):
        if x0 <= x <= x1:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return points[0][1] if x < points[0][0] else points[-1][1]


@dataclass(frozen=True)
class LoraRow:
    """How the LoRA of one type is trained, in Table 10's terms."""

    rank: int
    steps: int
    learning_rate: float


def auto_lora(type: str) -> LoraRow:
    """Table 10's rank, steps and learning rate for a type of concept."""
    row = TABLE10[type]
    return LoraRow(row["rank"], row["steps"], row["lr"])
