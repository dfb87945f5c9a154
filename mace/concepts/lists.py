"""The paper's lists of concepts (Tables 6, 7 and 9), its hyperparameters (Table 10), and usual mappings."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from .text import normalised


class Listed(NamedTuple):
    """One concept of one of the paper's lists: what is erased, what it becomes, and its type."""

    target: str
    mapping: str
    type: str


_PAPER: dict[str, Any] = json.loads((Path(__file__).parent / "data" / "paper.json").read_text(encoding="utf-8"))
_OBJECTS: dict[str, dict[str, Any]] = _PAPER["objects"]
_CELEBRITIES: list[str] = _PAPER["celebrities"]["erase"]

# What a concept becomes when nothing else is said: the super-category the paper uses for its type; objects,
# which lack one (Appendix C.1), become a scene.
DEFAULT_MAPPING: dict[str, str] = {
    "object": "sky",
    "celebrity": "a person",
    "style": "art",
    "explicit": "a person wearing clothes",
}

# Table 6: three synonyms of each CIFAR-10 class. The paper measures generality on them; they are not erased.
SYNONYMS: dict[str, tuple[str, ...]] = {name: tuple(entry["synonyms"]) for name, entry in _OBJECTS.items()}

# Table 10, by type of concept: steps, lr and rank of the LoRAs; lambda1 (= lambda2) and lambda3, the latter
# by number of concepts; for objects the weight of ||W' - W||^2 by class ("identity", mu). "cfis" is Eq. 5's
# t1, t2 and gamma.
TABLE10: dict[str, dict[str, Any]] = _PAPER["table10"]


def mapping_for(target: str, type: str) -> str:
    """The usual mapping of a target: Table 6's for one of its classes, else the type's DEFAULT_MAPPING."""
    entry = _OBJECTS.get(normalised(target)) if type == "object" else None
    return entry["mapping"] if entry else DEFAULT_MAPPING[type]


def _listed(type: str, targets: list[str], mapping: str | None = None) -> tuple[Listed, ...]:
    return tuple(Listed(target, mapping or mapping_for(target, type), type) for target in targets)


# The paper's erasures. Those of 5 and 10 celebrities take the first of the 100 (Table 7). Names stand as
# printed there, for they are the prompts the paper's numbers belong to.
PAPER_LISTS: dict[str, tuple[Listed, ...]] = {
    "10 CIFAR-10 classes": _listed("object", list(_OBJECTS)),
    "1 celebrity": _listed("celebrity", ["Melania Trump"], "a woman"),
    "5 celebrities": _listed("celebrity", _CELEBRITIES[:5]),
    "10 celebrities": _listed("celebrity", _CELEBRITIES[:10]),
    "100 celebrities": _listed("celebrity", _CELEBRITIES),
    "100 artists": _listed("style", _PAPER["artists"]["erase"]),
    "4 explicit concepts": _listed("explicit", _PAPER["explicit"]),
}

# The concepts to preserve of Tables 7 and 9: type and names.
RETENTION: dict[str, tuple[str, tuple[str, ...]]] = {
    "100 celebrities to keep": ("celebrity", tuple(_PAPER["celebrities"]["keep"])),
    "100 artists to keep": ("style", tuple(_PAPER["artists"]["keep"])),
}
