"""Gentle to strong: one number over all weights that hold what a model knows.

In Eq. 19, T = (A + R)(G + R)^-1 with R = lambda1 P + lambda3 D + mu I, so that T - I = (A - G)(G + R)^-1. With k R in
place of R, k from infinity to 0, T goes from I, where nothing changes, to what the concepts' own prompts ask for and
nothing else; (G + k R)^-1 only grows as k falls. In Eq. 7 lambda2 and lambda3 hold W (or W T, by pull), and mu keeps
the erasure LoRAs to the concepts' own tokens: what they add, B A S M^-1 with R in M, grows in the same way.
"""

from dataclasses import fields, replace

from ..method.fuse import FuseWeights
from ..method.refine import RefineWeights

# Powers of ten between the preset, in the middle, and either end.
DECADES = 2.0


def holding(lean: float) -> float:
    """What the weights are multiplied by at `lean`: 1 at 0, more towards gentle (-1), less towards strong (1).

    Raises ValueError outside -1..1.
    """
    if not -1.0 <= lean <= 1.0:
        raise ValueError(f"gentle to strong is a number from -1 to 1, not {lean!r}")
    return 10.0 ** (-DECADES * lean)


def leaning(weights: RefineWeights | FuseWeights, lean: float) -> RefineWeights | FuseWeights:
    """The weights of Eq. 19 or Eq. 7 at `lean` (see `holding`); at 0 they are as they were, to the bit."""
    factor = holding(lean)
    held = {f.name: getattr(weights, f.name) for f in fields(weights) if f.name == "mu" or f.name.startswith("lambda")}
    return replace(weights, **{name: value * factor for name, value in held.items()})
